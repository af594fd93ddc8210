"""CSV and TSV files: delimiters, quotation and the lines of records."""

from pathlib import Path

import pytest

from peftlab.errors import UserError
from tests.data.test_readers import read


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
