"""The YAML reader: scalars of YAML 1.2, the line of each key, and one line for every refusal."""

from pathlib import Path

import pytest

from peftlab.errors import UserError
from peftlab.recipe.yaml_reader import MAX_FILE_BYTES, read_scalar, read_yaml


def read(folder: Path, content: str | bytes) -> dict[str, object]:
    path = folder / "x.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_yaml(path).values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("1e-4", 1e-4), ("3E5", 3e5), (".5", 0.5), ("7", 7), ("-7", -7), ("no", "no"), ("on", "on"), ("true", True)],
        *[("null", None), ("", None), ("2020-01-01", "2020-01-01"), ("012", "012"), ("'8'", "8"), ("0x1F", "0x1F")],
    ],
)
def test_a_scalar_has_its_type_of_yaml_1_2(tmp_path: Path, text: str, value: object) -> None:
    scalar = read(tmp_path, f"a: {text}")["a"]
    assert (scalar, type(scalar)) == (value, type(value))
    assert read_scalar(text) == value


def test_each_key_has_its_line_number(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("# comment\na:\n  b: 1\n  c: [2,\n    3]\n")
    lines = read_yaml(path).lines
    assert (lines["a",], lines["a", "b"], lines["a", "c"], lines["a", "c", 1]) == (2, 3, 4, 5)


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "duplicate key 'a' (first on line 1)"),
        ("a:\n  b: 1\n  b: 2\n", 3, "duplicate key 'b' (first on line 2)"),
        ("a:\n\tb: 1\n", 2, "tab"),
        (b"a: 1\nb: \xff\n", 2, "not UTF-8: byte 0xff"),
        ("a: 1\nb: \x07\n", 2, "#x0007"),
        ("a: &x [1]\nb: *x\n", 1, "aliases are not allowed"),
        ("a: 1\nb: *nothing\n", 2, "aliases are not allowed"),
        ("a: " + "[" * 40 + "]" * 40, 1, "nested deeper"),
        ("a: " + "[" * 100_000, 1, "nested deeper"),
        ("a: !!python/object/apply:os.system [ls]", 1, "tag"),
        ("a: [1\nb: 2", 2, "expected ',' or ']'"),
        ("a: b: c", 1, "mapping values are not allowed"),
        ("- 1\n- 2", 1, "a mapping of keys to values"),
        ("", 1, "a mapping of keys to values"),
        ("[a]: 1", 1, "a key must be a scalar"),
        ("a: 1\n---\nb: 2", 2, "single document"),
    ],
)
def test_a_refusal_names_file_and_line(tmp_path: Path, content: str | bytes, line: int, says: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, content)
    assert str(caught.value).startswith(f"{tmp_path / 'x.yaml'}:{line}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too long: more than"):
        read(tmp_path, b"a" * (MAX_FILE_BYTES + 1))


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)
