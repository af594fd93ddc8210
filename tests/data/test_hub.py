"""Data sets by id or folder, read with the datasets library."""

from pathlib import Path

import datasets
import pytest

from peftlab.data.hub import Hub
from peftlab.errors import UserError
from tests.data.test_data import FIELDS, jsonl, sentences


def test_a_split_assigned_to_another_is_not_read_twice(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        table = datasets.Dataset.from_dict({"tokens": [f"{split} {i}" for i in range(50)], "labels": ["x"] * 50})
        table.to_parquet(tmp_path / f"{split}-00000.parquet")
    rows = Hub(id=str(tmp_path), splits={"test": "validation"}).load(FIELDS).rows
    assert {row.fields["tokens"].split()[0] for row in rows["test"]} == {"validation"}
    assert {row.fields["tokens"].split()[0] for row in rows["validation"]} == {"train"}  # cut off from train
    assert len(rows["train"]) + len(rows["validation"]) == 50


def test_class_names_are_read_from_a_folder_of_parquet(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-PER"])),
        }
    )
    table = datasets.Dataset.from_dict({"tokens": [["a", "b"]], "ner_tags": [[0, 1]]}, features=features)
    for split in ("train", "validation", "test"):
        table.to_parquet(tmp_path / f"{split}-00000.parquet")
    splits = Hub(id=str(tmp_path), columns={"labels": "ner_tags"}).load(FIELDS)
    assert splits.rows["train"][0].fields == {"tokens": ["a", "b"], "labels": ["O", "B-PER"]}


def test_a_file_in_place_of_an_id_is_an_error_with_the_right_setting(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", sentences(3))
    with pytest.raises(UserError, match=r"a.jsonl' is a file; write data: \{train: .*a.jsonl\}"):
        Hub(id=path).load(FIELDS)


def test_a_bad_file_in_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"tokens": \n')
    with pytest.raises(UserError) as caught:
        Hub(id=str(tmp_path)).load(FIELDS)
    assert "\n" not in str(caught.value)
