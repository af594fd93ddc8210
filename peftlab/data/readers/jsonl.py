"""JSON lines: one object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

from peftlab.data.readers.lines import read_lines
from peftlab.examples import Row


def read_jsonl(path: Path) -> list[Row]:
    """A row an object, its values as JSON has them; blank lines are skipped."""
    rows = []
    for number, line, fault in read_lines(path):
        if fault is None and not line.strip():
            continue
        value: object = None
        if fault is None:
            value, fault = _parse(line)
        rows.append(Row(f"{path}:{number}", value if isinstance(value, dict) else {}, fault))
    return rows


def _parse(line: str) -> tuple[object, str | None]:
    try:
        value = json.loads(line, parse_constant=_refuse)
    except ValueError as error:  # bad JSON, or a number of thousands of digits
        return None, f"not JSON: {error}"
    except RecursionError:
        return None, "nested too deeply"
    if "\\ud" in line.lower() and not _encodable(value):
        return None, "half of a surrogate pair, which is no character"
    if not isinstance(value, dict):
        return None, f"a JSON object was expected, found {type(value).__name__}"
    return value, None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _encodable(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
