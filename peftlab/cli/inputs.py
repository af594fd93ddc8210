"""Inputs of `peftlab predict`: a text, the lines of a file or of standard input, or a file of rows."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftlab.data.examples import Row
from peftlab.data.files import read_file
from peftlab.data.readers import ENDINGS, ReadOptions, ending_format
from peftlab.errors import UserError

FILES = (".md", *ENDINGS)  # an argument with such an ending names a file


def given_texts(text: str) -> tuple[list[str], str]:
    """Lines of text and the name of their source. Raises UserError."""
    if not text.strip():
        raise UserError("TEXT: is empty")
    path = Path(text)
    try:
        if text == "-":
            return _lines(sys.stdin.buffer.read().decode("utf-8-sig")), "standard input"
        if _exists(path) or (path.suffix in FILES and " " not in text and len(text) < 1000):
            return _lines(path.read_text(encoding="utf-8-sig")), text
    except OSError as error:
        raise UserError(f"{text}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{text}: not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}") from None
    return [text], "text"


def given_rows(text: str, options: ReadOptions | None = None) -> list[Row] | None:
    """Rows with the column names of the file; None if it is not a file of rows. Raises UserError."""
    path = Path(text)
    if ending_format(path) in (None, "text") or not _exists(path):
        return None
    rows = read_file(path, options=options)
    for row in rows:
        if row.fault is not None:
            raise UserError(f"{row.where}: {row.fault}")
    return rows


def read_options(data: Mapping[str, Any]) -> ReadOptions:
    """Options of the files that a run read, by the settings of its data: a file to predict has their form."""
    given = {name: data.get(name) for name in ("encoding", "header", "conll_columns")}
    return ReadOptions(names=tuple(data.get("names") or ()), **given)


def _lines(text: str) -> list[str]:
    r"""Lines split at line feeds only; str.splitlines also splits at other characters of texts.

    >>> _lines("a\r\nb\x85c\n")
    ['a', 'b\x85c']
    """
    return [line.rstrip("\n") for line in io.StringIO(text, newline=None)]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # the text is longer than a file name may be
        return False
