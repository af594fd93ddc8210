"""Safe and bounded YAML reader that records the line of every key."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from peftlab.errors import UserError

MAX_FILE_BYTES = 256 * 1024
MAX_DEPTH = 32  # levels of nesting

Key = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """The values of a file, and the 1-based line of each key: `lines[("method", "rank")]`."""

    values: dict[str, Any]
    lines: dict[Key, int]


class _Loader(yaml.SafeLoader):
    """Loader with the scalars of YAML 1.2: `1e-4` is a number; `no`, `on` and dates are strings."""


_DIGITS = r"[0-9][0-9_]*"
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", [*"-+0123456789"]),
    ("float", rf"[-+]?(\.{_DIGITS}|{_DIGITS}\.[0-9_]*)([eE][-+]?[0-9]+)?", [*"-+.0123456789"]),
    ("float", rf"[-+]?{_DIGITS}[eE][-+]?[0-9]+", [*"-+0123456789"]),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", [*"-+."]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def read_yaml(path: Path) -> Document:
    """Read a mapping from a file. Raises UserError with one line, `file:line: message`."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise UserError(f"{path}: too long: more than {MAX_FILE_BYTES} bytes")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8: byte 0x{raw[error.start]:02x}") from None
    try:
        return _document(text, str(path))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problem = " ".join(part for part in (error.context, error.problem) if part) or "not valid YAML"
        if "'\\t'" in problem:
            problem = "a tab cannot indent YAML; use spaces"
        raise UserError(f"{path}:{line}: {problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{path}:{line}: a character that YAML does not allow: #x{error.character:04x}") from None


def read_scalar(text: str) -> Any:
    """Read one YAML value, as for `--set key=value`. Raises UserError if it is not YAML.

    >>> read_scalar("3e-4"), read_scalar("no"), read_scalar("[q, v]"), read_scalar("")
    (0.0003, 'no', ['q', 'v'], None)
    """
    try:
        values = _document(f"value: {text}", "--set").values
        if values.keys() != {"value"}:
            raise UserError(f"{text!r} is more than one value")
        return values["value"]
    except yaml.YAMLError:
        raise UserError(f"{text!r} is not a YAML value") from None


def _document(text: str, name: str) -> Document:
    loader = _Loader(text)
    try:
        _check_events(loader, name)
    finally:
        loader.dispose()
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{name}:1: a mapping of keys to values was expected")
        lines: dict[Key, int] = {}
        values = _value(loader, node, (), lines, name)
    finally:
        loader.dispose()
    return Document(values, lines)


def _check_events(loader: yaml.SafeLoader, name: str) -> None:
    """Refuse aliases, which can expand without bound, and deep nesting, which can exhaust the stack, before parsing."""
    depth = 0
    while loader.check_event():
        event = loader.get_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise UserError(f"{name}:{line}: anchors and aliases are not allowed; write the value out")
        if getattr(event, "tag", None):
            raise UserError(f"{name}:{line}: the tag {event.tag!r} is not allowed")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise UserError(f"{name}:{line}: nested deeper than {MAX_DEPTH} levels")


def _value(loader: yaml.SafeLoader, node: yaml.Node, key: Key, lines: dict[Key, int], name: str) -> Any:
    lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, child, (*key, i), lines, name) for i, child in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        try:
            str(node.value).encode()
            return loader.construct_object(node)
        except ValueError:
            raise UserError(f"{name}:{node.start_mark.line + 1}: {node.value[:40]!r} cannot be read") from None
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"{name}:{line}: a key must be a scalar")
        word = str(key_node.value)
        if word in values:
            first = lines[(*key, word)]
            raise UserError(f"{name}:{line}: duplicate key {word!r} (first on line {first})")
        lines[(*key, word)] = line
        values[word] = _value(loader, value_node, (*key, word), lines, name)
    return values
