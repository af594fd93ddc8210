"""Data sources: files, folders and registry packages, and the splits and samples drawn from them."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from peftlab.data import Data
from peftlab.data.examples import Row
from peftlab.data.files import Files
from peftlab.errors import UserError
from peftlab.recipe import Recipe

FIELDS = ("tokens", "labels")


def jsonl(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def sentences(count: int, start: int = 0) -> list[dict[str, object]]:
    return [{"tokens": [f"word{i}"], "labels": ["O"]} for i in range(start, start + count)]


def words(rows: list[Row]) -> list[str]:
    return [row.fields["tokens"][0] for row in rows]


def test_missing_splits_are_cut_by_content_so_that_added_rows_move_no_other(tmp_path: Path) -> None:
    small = Files(train=jsonl(tmp_path / "a.jsonl", sentences(300))).load(FIELDS)
    large = Files(train=jsonl(tmp_path / "b.jsonl", sentences(300, 300)[::-1] + sentences(300))).load(FIELDS)
    assert 15 <= len(small.rows["validation"]) <= 45
    for split, rows in small.rows.items():
        assert set(words(rows)) <= set(words(large.rows[split]))
    other = Files(train=str(tmp_path / "a.jsonl"), split_seed=1).load(FIELDS)
    assert words(other.rows["test"]) != words(small.rows["test"])


def test_a_smaller_sample_is_part_of_a_larger_one(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", sentences(300))
    few, many = (set(words(Files(train=path, train_examples=n).load(FIELDS).rows["train"])) for n in (20, 100))
    assert len(few) == 20
    assert few < many


def test_the_fingerprint_depends_on_the_content_alone(tmp_path: Path) -> None:
    one = Files(train=jsonl(tmp_path / "a.jsonl", sentences(50))).load(FIELDS)
    same = Files(train=jsonl(tmp_path / "moved.jsonl", sentences(50))).load(FIELDS)
    other = Files(train=jsonl(tmp_path / "c.jsonl", sentences(51))).load(FIELDS)
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_validation_and_test_leave_rows_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"validation_share 0.9 \+ test_share 0.1: nothing of train is left"):
        Files(train="a.jsonl", validation_share=0.9)
    path = jsonl(tmp_path / "a.jsonl", sentences(50))
    with pytest.raises(UserError, match=r"the test split of .* is empty; data.test_share: 0 cuts none from train"):
        Files(train=path, test_share=0).load(FIELDS)


def test_a_test_split_that_is_not_scored_may_be_absent(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", sentences(50))
    recipe = {"name": "mine", "model": "x", "task": "token_classification", "method": "lora"}
    recipe |= {"data": {"train": path, "test_share": 0}, "score_test": False}
    rows = Recipe.model_validate(recipe).rows().rows
    assert (len(rows["train"]) + len(rows["validation"]), rows["test"]) == (50, [])
    Path(path).with_name("test.jsonl").write_text("")
    with pytest.raises(UserError, match=r"the test split of .* is empty"):
        Files(train=path, test=str(tmp_path / "test.jsonl")).load(FIELDS, scored=("train", "validation"))


def test_a_source_that_cannot_read_cannot_be_instantiated() -> None:
    class Unreadable(Data):
        pass

    with pytest.raises(TypeError, match=r"Can't instantiate abstract class Unreadable .*read"):
        Unreadable(kind="unreadable")
