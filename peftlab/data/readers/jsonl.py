"""JSON lines: one object per line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from peftlab.data.examples import Row
from peftlab.data.readers.lines import read_lines
from peftlab.errors import UserError


def read_jsonl(path: Path) -> list[Row]:
    """One row per object, with the values as JSON has them. Empty lines are skipped."""
    rows: list[Row] = []
    for number, line, fault in read_lines(path):
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
    """The object and None, or an empty object and its fault."""
    try:
        value = json.loads(text, parse_constant=_refuse, object_pairs_hook=_distinct)
    except _DuplicateKey as error:
        return {}, str(error)
    except ValueError as error:  # invalid JSON, or a number with thousands of digits
        return {}, f"not JSON: {error}"
    except RecursionError:
        return {}, "nested too deeply"
    if "\\ud" in text.lower() and not _encodable(value):
        return {}, "half of a surrogate pair, which is not a character"
    if not isinstance(value, dict):
        return {}, f"a JSON object was expected, found {type(value).__name__}"
    return value, None


class _DuplicateKey(Exception):
    pass


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object. Raises _DuplicateKey: of a key that occurs twice, `json` would silently use the last value."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise _DuplicateKey(f"{duplicate}: the key occurs twice in one object")
    return values


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number")


def _encodable(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
