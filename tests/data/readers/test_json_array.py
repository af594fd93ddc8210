"""JSON arrays: the line of each object."""

import gzip
from pathlib import Path

import pytest

from peftlab.data.examples import Unreadable
from peftlab.data.readers import read_json
from peftlab.errors import UserError
from tests.data.test_readers import read


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_the_objects_of_an_array_are_located_by_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    text = '\ufeff [{"text": "a"}, {"text":\n "b, ]"},\n\n["c"], {"text": "d", "text": "e"}\n ]\n'
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert [(row.where, row.fields, row.fault) for row in read(path)] == [
        (f"{path}:1", {"text": "a"}, None),
        (f"{path}:1", {"text": "b, ]"}, None),
        (f"{path}:4", {}, "a JSON object was expected, found list"),
        (f"{path}:4", {"text": Unreadable("text: the key occurs twice in one object")}, None),
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
        ("a.json", '{"data": [{"paragraphs": 1}]}', "article 1: paragraphs: a list of objects was expected"),
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


def test_text_after_an_array_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"},\n {"text": "b"}]\n[{"text": "c"}]\n')
    with pytest.raises(UserError, match=r"a\.json:2: not JSON: the array ends here, but the file does not"):
        read_json(path)
