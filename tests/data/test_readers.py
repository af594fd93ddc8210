"""File formats: the values of each, and the file and line of each row."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from peftlab.data.examples import Row
from peftlab.data.files import Files
from peftlab.data.hub import Hub
from peftlab.data.readers import lines, read_json
from peftlab.errors import UserError
from peftlab.recipe import Recipe


def read(path: Path, **settings: Any) -> list[Row]:
    return Files.model_validate({"train": str(path), **settings}).read()[0]["train"]


def test_a_table_has_strings_and_a_record_is_located_by_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,stars\n"Good, really",5\n\n"two\n""lines""",1.5\nlast,\n', encoding="utf-8-sig")
    rows = read(path)
    assert [dict(row.fields) for row in rows] == [
        {"text": "Good, really", "stars": "5"},
        {"text": 'two\n"lines"', "stars": "1.5"},
        {"text": "last", "stars": ""},
    ]
    assert [row.where for row in rows] == [f"{path}:2", f"{path}:4", f"{path}:6"]


def test_semicolons_separate_columns_if_the_first_line_has_no_comma(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text;stars\nGood, really;5\r\n")
    assert read(path)[0].fields == {"text": "Good, really", "stars": "5"}


@pytest.mark.parametrize("first", ["text | stars", '"text, all";stars', "text ,stars"])
def test_the_first_line_determines_the_delimiter(tmp_path: Path, first: str) -> None:
    sign = next(sign for sign in ";|," if sign in first)
    path = tmp_path / "a.csv"
    path.write_text(f"{first}\nGood{sign}5\n")
    assert list(read(path)[0].fields.values()) == ["Good", "5"]
    assert list(read(path)[0].fields)[1] == "stars"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"text,stars\rgood,5\r", ":1: lines end in a carriage return alone"),
        (b"\ntext,stars\n", ":1: is empty; the first line names the columns"),
        (b'"te\nxt",stars\ngood,5\n', ":1: a column name continues on the next line"),
    ],
)
def test_a_first_line_without_column_names_is_one_error_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        read(path)


def test_a_quotation_mark_in_a_tsv_is_an_ordinary_character(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"Hm, he said\tno\n')
    assert read(path)[0].fields == {"text": '"Hm, he said', "label": "no"}


def test_numbers_of_a_text_format_are_read_from_the_columns_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,stars\n" + "".join(f"t{i},{i}.5\n" for i in range(40)))
    shares = {"validation_share": 0.2, "test_share": 0.2}
    data = Files(train=str(path), columns={"label": "stars"}, numbers=("stars",), **shares)
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


def test_parquet_keeps_types_and_class_names(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a", "b"], "score": [0.5, None], "words": [["x"], []]}), path)
    assert [dict(row.fields) for row in read(path)] == [
        {"text": "a", "score": 0.5, "words": ["x"]},
        {"text": "b", "score": None, "words": []},
    ]
    assert read(path)[1].where == f"{path} row 2"
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    datasets.Dataset.from_dict({"text": ["a"], "label": [1]}, features=features).to_parquet(path)
    assert read(path)[0].fields == {"text": "a", "label": "pos"}


def test_an_unknown_class_number_is_a_fault_and_minus_one_means_unlabeled(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    features = datasets.Features({"label": datasets.ClassLabel(names=["neg", "pos"])})
    table = datasets.Dataset.from_dict({"label": [0, 0, 0]}, features=features).data.table
    parquet.write_table(table.set_column(0, table.schema.field(0), pyarrow.array([1, -1, 7])), path)
    assert [row.fields["label"] for row in read(path)[:2]] == ["pos", None]
    assert read(path)[2].fault == "label: 7 is not the number of one of 2 classes"


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


def test_text_is_one_row_per_line_and_the_format_can_be_set(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("EU B-ORG\n\nPeter B-PER\n")
    assert [(row.where, row.fields) for row in read(path)] == [
        (f"{path}:1", {"text": "EU B-ORG"}),
        (f"{path}:3", {"text": "Peter B-PER"}),
    ]
    assert read(path, format="conll")[0].fields == {"tokens": ["EU"], "labels": ["B-ORG"]}


@pytest.mark.parametrize("splits_saved", [True, False])
def test_the_output_of_save_to_disk_is_read(tmp_path: Path, splits_saved: bool) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    table = datasets.Dataset.from_dict({"text": [f"t{i}" for i in range(60)], "label": [0, 1] * 30}, features=features)
    saved = datasets.DatasetDict({"train": table, "dev": table.select(range(9))}) if splits_saved else table
    saved.save_to_disk(tmp_path / "saved")
    settings: dict[str, Any] = {"splits": {"validation": "dev"}} if splits_saved else {}
    splits = Hub(id=str(tmp_path / "saved"), **settings).load(("text", "label"))
    assert {row.fields["label"] for row in splits.rows["train"]} == {"no", "yes"}
    if splits_saved:
        assert [row.fields["text"] for row in splits.rows["validation"]] == [f"t{i}" for i in range(9)]
    assert splits.rows["test"][0].where.startswith(f"{tmp_path / 'saved'} train row ")


def test_where_locates_a_row_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps({"text": f"t{i}"}) + "\n" for i in range(50)))
    for row in Files(train=str(path)).load(("text",)).rows["test"]:
        file, _, number = row.where.rpartition(":")
        assert json.loads(Path(file).read_text().splitlines()[int(number) - 1]) == row.fields


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_the_objects_of_an_array_are_located_by_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    text = '\ufeff [{"text": "a"}, {"text":\n "b, ]"},\n\n["c"], {"text": "d", "text": "e"}\n ]\n'
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert [(row.where, row.fields, row.fault) for row in read(path)] == [
        (f"{path}:1", {"text": "a"}, None),
        (f"{path}:1", {"text": "b, ]"}, None),
        (f"{path}:4", {}, "a JSON object was expected, found list"),
        (f"{path}:4", {}, "text: the key occurs twice in one object"),
    ]
    path = tmp_path / "lines.json"
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    assert [row.where for row in read(path)] == [f"{path}:1", f"{path}:2"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", '[{"a": 1},\n{"b" 2}]', "a.json:2: not JSON: Expecting ':' delimiter"),
        ("a.json", '[{"a": 1}\n{"b": 2}]', "a.json:1: not JSON: the object that begins here is not followed by"),
        ("a.json", '[{"a": 1},', "a.json:1: not JSON: Expecting value"),
        (
            "a.json",
            '{\n"a": 1}',
            "a.json: an array of objects, or one object per line, was expected, found one value (a)",
        ),
        ("a.json", '{"version": "2", "data": []}', "to get rows from SQuAD's articles: jq -c '.data[]"),
        ("a.jsonl", '[\n{"a": 1}\n]\n', "a.jsonl:1: an array, not one object per line; data.format: json reads"),
        ("a.csv.gz", "text\n", "a.csv.gz: cannot be read: Not a gzipped file"),
    ],
)
def test_a_bad_array_or_archive_is_one_error_line(tmp_path: Path, name: str, content: str, says: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        read(path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_gzipped_file_is_read_by_its_inner_ending(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n'))
    assert read(tmp_path / "a.jsonl.gz")[0].fields == {"text": "a"}
    compressed = gzip.compress(b"text,label\na,b\n")
    (tmp_path / "a.csv.gz").write_bytes(compressed)
    assert read(tmp_path / "a.csv.gz")[0].fields == {"text": "a", "label": "b"}
    (tmp_path / "a.csv.gz").write_bytes(compressed[:-10])
    with pytest.raises(UserError, match=r"a.csv.gz: cannot be read: Compressed file ended"):
        read(tmp_path / "a.csv.gz")


def test_text_after_an_array_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"},\n {"text": "b"}]\n[{"text": "c"}]\n')
    with pytest.raises(UserError, match=r"a\.json:2: not JSON: the array ends here, but the file does not"):
        read_json(path)


def test_a_line_too_long_by_its_line_ending_does_not_affect_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "LONGEST_LINE", 8)
    path = tmp_path / "a.txt"
    path.write_text("12345678\nnext\n123456789\nlast\n")
    result = [(line.number, line.text, line.fault is None) for line in lines.read_lines(path)]
    assert result == [(1, "", False), (2, "next\n", True), (3, "", False), (4, "last\n", True)]
