"""Paths of data: relative to the file that names them, and named in the digest by their contents."""

import json
import shutil
from pathlib import Path

import pytest

from peftlab.recipe import Recipe, load_recipe
from peftlab.suites.suite_file import load_suite

HEAD = "name: mine\nmodel: x/y\ntask: sequence_classification\nmethod: lora\n"


def rows(path: Path, count: int = 60) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": f"t{i}", "label": i % 2}) + "\n" for i in range(count)))
    return path


def recipe(folder: Path, data: str, name: str = "mine.yaml", more: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"{HEAD}data: {data}\n{more}")
    return path


def test_data_are_found_from_the_folder_of_the_recipe_and_of_the_suite(tmp_path: Path) -> None:
    rows(tmp_path / "deep" / "data" / "a.jsonl")
    path = recipe(tmp_path / "deep", "{train: data/a.jsonl}")
    assert sum(map(len, load_recipe(path).rows().rows.values())) == 60
    replayed = recipe(tmp_path / "deep", "{train: data/a.jsonl}", more="replay: {data: {train: data/a.jsonl}}\n")
    assert load_recipe(replayed).replay.data.missing_files() == []  # type: ignore[union-attr]
    (tmp_path / "deep" / "suite.yaml").write_text(
        "reference: lora\nmodel: x/y\nseeds: [1]\nquantizations: [none]\n"
        "methods: {lora: {method: lora, learning_rate: 1e-3}}\n"
        "tasks: {t: {task: sequence_classification, data: {train: data/a.jsonl}}}\n"
    )
    suite = load_suite(tmp_path / "deep")
    assert suite.example(next(iter(suite.rows()))).data.missing_files() == []


def test_an_old_path_is_found_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows(tmp_path / "a.jsonl")
    path = recipe(tmp_path / "deep", "{train: a.jsonl}")
    assert load_recipe(path).data.missing_files() == []
    rows(tmp_path / "deep" / "a.jsonl", 50)  # the folder of the recipe comes first
    assert sum(map(len, load_recipe(path).rows().rows.values())) == 50


@pytest.mark.parametrize("data", ["{train: a.jsonl}", "folder", "{id: folder}"])
def test_a_moved_folder_keeps_its_digest_and_a_changed_file_does_not(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ("a.jsonl", "folder/train.jsonl"):
        rows(tmp_path / "one" / path)
    first = load_recipe(recipe(tmp_path / "one", data))
    record, digest = first.to_record(), first.digest
    moved = Path(shutil.move(tmp_path / "one", tmp_path / "two"))
    assert load_recipe(moved / "mine.yaml").digest == digest
    monkeypatch.chdir(moved)
    assert load_recipe(Path("mine.yaml")).digest == digest
    for path in ("a.jsonl", "folder/train.jsonl"):
        rows(moved / path, 61)
    assert load_recipe(moved / "mine.yaml").digest != digest
    stored = Recipe.from_record(record)
    assert (stored.digest, stored.to_record()) == (digest, record)


def test_a_record_without_fingerprints_is_named_by_its_paths(tmp_path: Path) -> None:
    rows(tmp_path / "a.jsonl")
    path = recipe(tmp_path, "{train: a.jsonl}")
    record = load_recipe(path).to_record()
    del record["data"]["fingerprints"]
    old = Recipe.from_record(record)
    assert old.digest != load_recipe(path).digest
    assert old.to_record() == record
    (tmp_path / "a.jsonl").unlink()
    assert Recipe.from_record(record).digest == old.digest


def test_score_test_false_takes_no_test_split_from_train(tmp_path: Path) -> None:
    rows(tmp_path / "a.jsonl", 300)
    path = recipe(tmp_path, "{train: a.jsonl}")
    scored = load_recipe(path).rows().rows
    for more, overrides in (("score_test: false\n", ()), ("", ("score_test=false",))):
        unscored = load_recipe(recipe(tmp_path, "{train: a.jsonl}", more=more), overrides).rows().rows
        assert (len(scored["test"]) > 0, unscored["test"]) == (True, [])
        assert len(unscored["train"]) == 300 - len(unscored["validation"])
    asked = load_recipe(recipe(tmp_path, "{train: a.jsonl, test_share: 0.2}", more="score_test: false\n"))
    assert len(asked.rows().rows["test"]) > 0
