"""JSON lines: one object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from peftlab.data.examples import Row
from peftlab.data.readers.lines import read_lines
from peftlab.errors import UserError


def read_jsonl(path: Path) -> list[Row]:
    """A row an object, its values as JSON has them; blank lines are skipped."""
    rows: list[Row] = []
    for number, line, fault in read_lines(path):
        if fault is None and not line.strip():
            continue
        if not rows and line.strip() == "[":
            raise UserError(
                f"{path}:{number}: an array, not an object a line; data.format: json reads an array of objects"
            )
        value: dict[str, Any] = {}
        if fault is None:
            value, fault = parse(line)
        rows.append(Row(f"{path}:{number}", value, fault))
    return rows


def parse(text: str) -> tuple[dict[str, Any], str | None]:
    """The object, or what is wrong with it."""
    try:
        value = json.loads(text, parse_constant=_refuse, object_pairs_hook=_distinct)
    except _Twice as error:
        return {}, str(error)
    except ValueError as error:  # bad JSON, or a number of thousands of digits
        return {}, f"not JSON: {error}"
    except RecursionError:
        return {}, "nested too deeply"
    if "\\ud" in text.lower() and not _encodable(value):
        return {}, "half of a surrogate pair, which is no character"
    if not isinstance(value, dict):
        return {}, f"a JSON object was expected, found {type(value).__name__}"
    return value, None


class _Twice(Exception):
    pass


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a key that stands twice `json` would keep the last value and say nothing."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(f"{next(name for name in names if names.count(name) > 1)}: the key stands twice in one object")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _encodable(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
