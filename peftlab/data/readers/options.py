"""Options of the file formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Settings of the user for reading files. A reader uses those of its format."""

    encoding: str | None = None
    """Encoding of the text formats. None: UTF-8, or UTF-16 or UTF-32 if the file starts with its byte order mark."""
    header: bool | None = None
    """True if the first line of a table has the names of the columns. None: true unless there are `names`."""
    names: tuple[str, ...] = ()
    """Names of a table's columns."""
    conll_columns: Mapping[str, int] | None = None
    """Position of each CoNLL column that is read, from 1, or from -1 at the end. None: recognized."""


DEFAULT = ReadOptions()
