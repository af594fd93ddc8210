"""File formats: the values of each, and the file and line of each row."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from peftlab.data.examples import Row
from peftlab.data.files import Files
from peftlab.errors import UserError
from peftlab.recipe import Recipe


def read(path: Path, **settings: Any) -> list[Row]:
    return Files.model_validate({"train": str(path), **settings}).read()[0]["train"]


def test_numbers_of_a_text_format_are_read_from_the_columns_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,stars\n" + "".join(f"t{i},{i}.5\n" for i in range(40)))
    fractions = {"validation_share": 0.2, "test_share": 0.2}
    data = Files(train=str(path), columns={"label": "stars"}, numbers=("stars",), **fractions)
    rows = [row for part in data.load(("text", "label")).rows.values() for row in part]
    assert sorted(row.fields["label"] for row in rows) == [i + 0.5 for i in range(40)]
    path.write_text("text,stars\na,5\nb,five\n")
    with pytest.raises(UserError, match=rf"{path}:3: label: 'five' is not a number"):
        data.load(("text", "label"))
    with pytest.raises(UserError, match=r"data.numbers: no field of the task is read from column 'star'"):
        data.model_copy(update={"numbers": ("star",)}).load(("text", "label"))


def test_a_cell_is_split_into_a_list_by_its_separator(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,tags\n" + "".join(f"t{i},{('a | b', 'b', '')[i % 3]}\n" for i in range(60)))
    settings: dict[str, Any] = {"train": str(path), "columns": {"label": "tags"}, "lists": {"tags": "|"}}
    recipe = {"name": "mine", "model": "x", "task": {"kind": "sequence_classification", "problem": "multi_label"}}
    rows = Recipe.model_validate({**recipe, "method": "lora", "data": settings}).rows().rows
    lists = {(int(row.fields["text"][1:]) % 3, *row.fields["label"]) for part in rows.values() for row in part}
    assert lists == {(0, "a", "b"), (1, "b"), (2,)}
    with pytest.raises(
        UserError, match=r"data.lists: no field of the task is read from column 'tag' \(did you mean 'tags'\?\)"
    ):
        Files.model_validate({**settings, "lists": {"tag": "|"}}).load(("text", "label"))


def test_lists_are_in_the_digest_only_if_there_are_some() -> None:
    assert "lists" not in Files(train="a.csv").model_dump(mode="json")
    assert Files(train="a.csv", lists={"label": "|"}).model_dump(mode="json")["lists"] == {"label": "|"}


def test_an_unscored_split_without_labels_is_empty_and_not_cut_from_train(tmp_path: Path) -> None:
    for split, labels in (("train", range(20)), ("validation", range(3)), ("test", [-1, -1])):
        features = datasets.Features({"label": datasets.ClassLabel(num_classes=20)})
        datasets.Dataset.from_dict({"label": list(labels)}, features=features).to_parquet(tmp_path / f"{split}.parquet")
    data = Files(**{split: str(tmp_path / f"{split}.parquet") for split in ("train", "validation", "test")})

    def labeled(row: Row) -> None:
        if row.fields["label"] is None:
            raise UserError(f"{row.where}: label: is missing")

    with pytest.raises(UserError, match=r"the test split of .* if it has no labels"):
        data.load(("label",), check=labeled)
    splits = data.load(("label",), check=labeled, scored=("train", "validation"))
    assert [len(splits.rows[split]) for split in ("train", "validation", "test")] == [20, 3, 0]


def test_where_locates_a_row_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps({"text": f"t{i}"}) + "\n" for i in range(50)))
    for row in Files(train=str(path)).load(("text",)).rows["test"]:
        file, _, number = row.where.rpartition(":")
        assert json.loads(Path(file).read_text().splitlines()[int(number) - 1]) == row.fields


def test_a_gzipped_file_is_read_by_its_inner_ending(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n'))
    assert read(tmp_path / "a.jsonl.gz")[0].fields == {"text": "a"}
    compressed = gzip.compress(b"text,label\na,b\n")
    (tmp_path / "a.csv.gz").write_bytes(compressed)
    assert read(tmp_path / "a.csv.gz")[0].fields == {"text": "a", "label": "b"}
    (tmp_path / "a.csv.gz").write_bytes(compressed[:-10])
    with pytest.raises(UserError, match=r"a.csv.gz: cannot be read: Compressed file ended"):
        read(tmp_path / "a.csv.gz")
