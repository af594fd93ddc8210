"""Plain text: one row per line."""

from pathlib import Path

from tests.data.test_readers import read


def test_text_is_one_row_per_line_and_the_format_can_be_set(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("EU B-ORG\n\nPeter B-PER\n")
    assert [(row.where, row.fields) for row in read(path)] == [
        (f"{path}:1", {"text": "EU B-ORG"}),
        (f"{path}:3", {"text": "Peter B-PER"}),
    ]
    assert read(path, format="conll")[0].fields == {"tokens": ["EU"], "labels": ["B-ORG"]}
