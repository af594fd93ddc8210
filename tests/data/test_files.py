"""Data files of the user: errors name file and line."""

from pathlib import Path

import pytest

from peftlab.data.files import Files
from peftlab.data.hub import Hub
from peftlab.errors import UserError
from peftlab.models.model import Model
from tests.data.test_data import FIELDS


def test_a_tilde_at_the_start_of_a_path_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    data = Files(train="~/a.jsonl", test="x/~/b.jsonl")
    assert (data.train, data.validation, data.test) == (f"{tmp_path}/a.jsonl", None, "x/~/b.jsonl")
    assert Hub(id="~/rows").id == f"{tmp_path}/rows"
    assert Model(id="~/base").id == f"{tmp_path}/base"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"tokens": ["a"], "labels": ["O"]}\n{"tokens": \n', "a.jsonl:2: not JSON"),
        (b'["a"]\n', "a.jsonl:1: a JSON object was expected, found list"),
        (b'{"tokens": ["a"], "labels": ["O"]}\n{"tokens": ["\xff"]}\n', "a.jsonl:2: not UTF-8: byte 0xff"),
        (b'{"tokens": ["a\x00"]}\n', "a.jsonl:1: a NUL byte"),
        (b"[" * 200_000, "a.jsonl:1: nested too deeply"),
        (b'{"tokens": ["\\ud800"], "labels": ["O"]}\n', "a.jsonl:1: tokens: half of a surrogate pair"),
        (b'{"tokens": ' + b"1" * 5000 + b"}\n", "a.jsonl:1: not JSON"),
        (b"", "the train split of"),
        (
            b'{"token": ["a"], "labels": ["O"]}\n',
            "no column 'tokens' for the task's field 'tokens' (did you mean 'token'?)",
        ),
        (b'{"x": 1}\n', "no column 'tokens' for the task's field 'tokens'; it has: x"),
    ],
)
def test_a_bad_file_names_file_and_line(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    path = str(tmp_path / "a.jsonl")
    with pytest.raises(UserError) as caught:
        Files(train=path, validation=path, test=path).load(FIELDS)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"train": "nowhere.jsonl"}, "nowhere.jsonl: cannot be read: No such file"),
        ({"train": "a.xlsx"}, "a.xlsx ends in '.xlsx'; known are .jsonl"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(settings: dict[str, str], says: str) -> None:
    with pytest.raises(UserError) as caught:
        Files(**settings).load(FIELDS)  # type: ignore[arg-type]
    assert says in str(caught.value)
