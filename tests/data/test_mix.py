"""Mixes of data sets, and several files in a split: which rows they have, in which order, and what they say of it."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from peftlab.data.examples import Splits
from peftlab.errors import UserError
from peftlab.recipe import Recipe, load_recipe

HEAD = "name: mine\nmodel: x/y\ntask: sequence_classification\nmethod: lora\n"


def rows(folder: Path, word: str, count: int, text: str = "text") -> dict[str, Any]:
    path = folder / f"{word}.jsonl"
    path.write_text("".join(json.dumps({text: f"{word} {i}", "label": i % 2}) + "\n" for i in range(count)))
    (folder / "held.jsonl").write_text("".join(json.dumps({"text": f"h {i}", "label": i % 2}) + "\n" for i in range(9)))
    (folder / "other.jsonl").write_text("".join(json.dumps({text: f"o {i}", "label": 1}) + "\n" for i in range(7)))
    held = "held" if text == "text" else "other"
    return {"train": f"{word}.jsonl", "validation": f"{held}.jsonl", "test": f"{held}.jsonl"}


def recipe(folder: Path, data: dict[str, Any], more: str = "") -> Recipe:
    (folder / "mine.yaml").write_text(f"{HEAD}data: {json.dumps(data)}\n{more}")
    return load_recipe(folder / "mine.yaml")


def mix(folder: Path, *weights: float | None, **settings: Any) -> Splits:
    parts = [
        {"data": rows(folder, "big", 100), "weight": weights[0]},
        {"data": {**rows(folder, "small", 30, "review"), "columns": {"text": "review"}}, "weight": weights[1]},
    ]
    return recipe(folder, {"parts": parts, **settings}).rows()


def words(splits: Splits) -> Counter[str]:
    return Counter(row.fields["text"].split()[0] for row in splits.rows["train"])


def test_training_rows_are_in_proportion_to_the_weights_and_every_row_occurs(tmp_path: Path) -> None:
    splits = mix(tmp_path, 1, 1)
    assert words(splits) == {"big": 100, "small": 100}
    times = Counter(row.fields["text"] for row in splits.rows["train"])
    assert {times[f"small {i}"] for i in range(30)} == {3, 4}
    assert {times[f"big {i}"] for i in range(100)} == {1}
    assert words(mix(tmp_path, 1, 2)) == {"big": 100, "small": 200}
    assert words(mix(tmp_path, None, None)) == {"big": 100, "small": 30}
    assert words(mix(tmp_path, 3, 1, train_examples=40)) == {"big": 30, "small": 10}
    assert [len(splits.rows[split]) for split in ("validation", "test")] == [9 + 7, 9 + 7]


def test_a_repeated_row_is_a_row_of_its_own(tmp_path: Path) -> None:
    train = mix(tmp_path, 1, 4).rows["train"]
    assert len({id(row) for row in train}) == len(train) == 500


def test_a_mix_is_the_same_each_time_and_the_line_about_the_data_says_it(tmp_path: Path) -> None:
    first, again = mix(tmp_path, 1, 1), mix(tmp_path, 1, 1)
    assert first.fingerprint == again.fingerprint != mix(tmp_path, 1, 1, split_seed=1).fingerprint
    assert first.rows == again.rows
    assert first.source == (
        f"mix of {tmp_path}/big.jsonl (100 of 100 rows, weight 1), {tmp_path}/small.jsonl (100 of 30 rows, weight 1)"
    )


def test_a_moved_mix_keeps_its_digest_and_a_weight_changes_it(tmp_path: Path) -> None:
    def digest(folder: Path, weight: float) -> str:
        folder.mkdir(exist_ok=True)
        parts = [{"data": rows(folder, word, 30), "weight": weight} for word in ("a", "b")]
        parts[0]["weight"] = 1
        made = recipe(folder, {"parts": parts})
        assert Recipe.from_record(made.to_record()).digest == made.digest
        return made.digest

    assert digest(tmp_path / "one", 2) == digest(tmp_path / "two", 2) != digest(tmp_path / "two", 3)


def test_leaks_between_the_parts_are_counted_and_removed(tmp_path: Path) -> None:
    held = rows(tmp_path, "big", 30)
    data = {"parts": [{"data": held}, {"data": {**held, "train": ["big.jsonl", "held.jsonl"]}}]}
    splits = recipe(tmp_path, data).rows()
    assert splits.leaks == {"validation": 18, "test": 18}
    cleaned = recipe(tmp_path, {**data, "drop_leaks": True}).rows()
    assert (cleaned.leaks, cleaned.skipped) == ({"validation": 0, "test": 0}, {"train": {"leaks": 9}})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"columns": {"text": "x"}}, "columns belongs to the data of a part"),
        ({"validation_share": 0.2}, "validation_share belongs to the data of a part"),
        ({"weight": 1}, "a weight for each part was expected, or for none"),
    ],
)
def test_a_key_without_effect_is_refused(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    parts: list[dict[str, Any]] = [{"data": "a/b"}, {"data": "c/d"}]
    if "weight" in change:
        parts[0] |= change
        change = {}
    with pytest.raises(UserError, match=says):
        recipe(tmp_path, {"parts": parts, **change})


def test_the_files_of_a_split_are_read_in_order(tmp_path: Path) -> None:
    data = {**rows(tmp_path, "a", 30), **rows(tmp_path, "b", 20), "train": ["b.jsonl", "a.jsonl"]}
    splits = recipe(tmp_path, data).rows()
    assert [row.fields["text"] for row in splits.rows["train"]] == [
        f"{word} {i}" for word, count in (("b", 20), ("a", 30)) for i in range(count)
    ]
    assert splits.source == f"{tmp_path}/b.jsonl, {tmp_path}/a.jsonl"
    with pytest.raises(UserError, match=r"c.jsonl: cannot be read: No such file"):
        recipe(tmp_path, {**data, "train": ["a.jsonl", "c.jsonl"]}).rows()


def test_score_test_false_cuts_no_test_split_from_a_part(tmp_path: Path) -> None:
    rows(tmp_path, "a", 100)
    data = {"parts": [{"data": {"train": "a.jsonl"}}, {"data": {"train": "a.jsonl"}}]}
    splits = recipe(tmp_path, data, "score_test: false\n").rows()
    assert splits.rows["test"] == []
    assert len(splits.rows["train"]) == 200 - len(splits.rows["validation"])
