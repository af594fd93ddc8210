"""Columns of a source and the fields of a task."""

from pathlib import Path

import pytest

from peftlab.data.files import Files
from peftlab.errors import UserError
from tests.data.test_data import FIELDS, jsonl, sentences


def test_an_optional_column_is_read_if_present_and_required_if_named(tmp_path: Path) -> None:
    lines: list[dict[str, object]] = [
        {"tokens": f"a{i}", "labels": "x", **({"more": 1} if i % 2 else {})} for i in range(50)
    ]
    path = jsonl(tmp_path / "a.jsonl", lines)
    rows = Files(train=path).load(FIELDS, ("more", "other")).rows["train"]
    assert {tuple(row.fields) for row in rows} == {("tokens", "labels"), ("tokens", "labels", "more")}
    with pytest.raises(UserError, match=r"a.jsonl:\d+: no column 'mor' for .* 'more' \(did you mean 'more'"):
        Files(train=path, columns={"more": "mor"}).load(FIELDS, ("more",))
    with pytest.raises(UserError, match=r"the task has no field 'moer' \(did you mean 'more'\?\)"):
        Files(train=path, columns={"moer": "more"}).load(FIELDS, ("more",))


def test_a_column_for_an_unknown_field_of_the_task_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", sentences(50))
    with pytest.raises(UserError, match=r"data.columns: the task has no field 'label' \(did you mean 'labels'\?\)"):
        Files(train=path, columns={"label": "tags"}).load(FIELDS)
