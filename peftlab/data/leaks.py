"""Leaks: inputs of validation or test that occur in train too, so that their scores do not measure generalization."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from peftlab.data.examples import Row


def input_hashes(rows: Iterable[Row], fields: Sequence[str]) -> set[bytes]:
    """Hashes of the rows' inputs, which are their `fields`."""
    return {input_hash(row, fields) for row in rows}


def input_hash(row: Row, fields: Sequence[str]) -> bytes:
    """Hash of the row's `fields`, the same for rows that differ in case and white space only."""
    content = json.dumps([_normalize(row.fields.get(field)) for field in fields], ensure_ascii=False, default=str)
    return hashlib.blake2b(content.encode(), digest_size=16).digest()


def _normalize(value: Any) -> Any:
    """The value with lower-case texts and single spaces.

    >>> _normalize(["The  Cat ", {"a": "B\\n"}, 3])
    ['the cat', {'a': 'b'}, 3]
    """
    if isinstance(value, str):
        return " ".join(value.split()).casefold()
    if isinstance(value, (list, tuple)):
        return [_normalize(item) for item in value]
    if isinstance(value, dict):
        return {name: _normalize(value[name]) for name in sorted(value)}
    return value
