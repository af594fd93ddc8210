"""Leaks: inputs of validation and test that stand in train too, so that a score on them is no score on new ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from peftlab.data.examples import Row

Keys = set[bytes]


def keys(rows: Iterable[Row], fields: Sequence[str]) -> Keys:
    """What identifies the inputs of rows."""
    return {key(row, fields) for row in rows}


def key(row: Row, fields: Sequence[str]) -> bytes:
    """The same for two rows whose `fields` differ in nothing but case and white space."""
    content = json.dumps([_normal(row.fields.get(field)) for field in fields], ensure_ascii=False, default=str)
    return hashlib.blake2b(content.encode(), digest_size=16).digest()


def _normal(value: Any) -> Any:
    """
    >>> _normal(["The  Cat ", {"a": "B\\n"}, 3])
    ['the cat', {'a': 'b'}, 3]
    """
    if isinstance(value, str):
        return " ".join(value.split()).casefold()
    if isinstance(value, (list, tuple)):
        return [_normal(inner) for inner in value]
    if isinstance(value, dict):
        return {name: _normal(value[name]) for name in sorted(value)}
    return value
