"""JSON lines: one object per line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peftlab.data.examples import Row, Unreadable
from peftlab.data.readers.lines import read_lines
from peftlab.data.readers.options import DEFAULT, ReadOptions
from peftlab.errors import UserError


def read_jsonl(path: Path, options: ReadOptions = DEFAULT) -> list[Row]:
    """One row per object, with the values as JSON has them. Empty lines are skipped."""
    rows: list[Row] = []
    for number, line, fault in read_lines(path, options.encoding):
        if fault is None and not line.strip():
            continue
        if not rows and line.strip() == "[":
            raise UserError(
                f"{path}:{number}: an array, not one object per line; data.format: json reads an array of objects"
            )
        value: dict[str, Any] = {}
        if fault is None:
            value, fault = parse(line)
        rows.append(Row(f"{path}:{number}", value, fault))
    return rows


def parse(text: str) -> tuple[dict[str, Any], str | None]:
    """The object and None, or an empty object and its fault. A value that no task can use is Unreadable."""
    found: list[Unreadable] = []

    def unreadable(reason: str) -> Unreadable:
        found.append(Unreadable(reason))
        return found[-1]

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):  # `json` would silently use the last value of a key
            names = [name for name, _ in pairs]
            values |= {
                name: unreadable(f"{name}: the key occurs twice in one object")
                for name in values
                if names.count(name) > 1
            }
        return values

    try:
        value = json.loads(
            text,
            parse_constant=lambda name: unreadable(f"not JSON: {name} is not a number"),
            object_pairs_hook=distinct,
        )
    except ValueError as error:  # invalid JSON, or a number with thousands of digits
        return {}, f"not JSON: {error}"
    except RecursionError:
        return {}, "nested too deeply"
    if not isinstance(value, dict):
        return {}, f"a JSON object was expected, found {type(value).__name__}"
    if found:
        value = {name: _first_unreadable(item) or item for name, item in value.items()}
    if "\\ud" in text.lower():
        half = Unreadable("half of a surrogate pair, which is not a character")
        if not all(map(_encodable, value)):
            return {}, half.reason
        value = {
            name: item if isinstance(item, Unreadable) or _encodable(item) else half for name, item in value.items()
        }
    return value, None


def _first_unreadable(value: object) -> Unreadable | None:
    """The first unreadable value in a value, itself included."""
    if isinstance(value, Unreadable):
        return value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((item for item in map(_first_unreadable, inner) if item is not None), None)


def _encodable(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
