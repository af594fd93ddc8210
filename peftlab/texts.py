"""Texts that a person gives on the command line: as they are, in a file, or on standard input."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from peftlab.part import BadInput

FILES = (".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".conll")  # a name with such an end is meant as a file


def given_texts(text: str) -> tuple[list[str], str]:
    """Lines of text and where they are from. Raises BadInput."""
    path = Path(text)
    try:
        if text == "-":
            return _lines(sys.stdin.buffer.read().decode("utf-8-sig")), "standard input"
        if _exists(path) or (path.suffix in FILES and " " not in text and len(text) < 1000):
            return _lines(path.read_text(encoding="utf-8-sig")), text
    except OSError as error:
        raise BadInput(f"{text}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{text}: not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}") from None
    return [text], "text"


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
