"""What a person wants answered: a text on the command line, lines of a file or of standard input, a file of rows."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from peftlab.data.examples import Row
from peftlab.data.files import read_file
from peftlab.data.readers import ENDINGS, ending_format
from peftlab.errors import UserError

FILES = (".md", *ENDINGS)  # a name with such an end is meant as a file


def given_texts(text: str) -> tuple[list[str], str]:
    """Lines of text and where they are from. Raises UserError."""
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


def given_rows(text: str) -> list[Row] | None:
    """The rows, under the file's own names, if it is a file of rows and not of lines. Raises UserError."""
    path = Path(text)
    if ending_format(path) in (None, "text") or not _exists(path):
        return None
    rows = read_file(path)
    for row in rows:
        if row.fault is not None:
            raise UserError(f"{row.where}: {row.fault}")
    return rows


def _lines(text: str) -> list[str]:
    r"""Not splitlines, for which a line ends at characters that texts have, too.

    >>> _lines("a\r\nb\x85c\n")
    ['a', 'b\x85c']
    """
    return [line.rstrip("\n") for line in io.StringIO(text, newline=None)]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a text longer than a name may be
        return False
