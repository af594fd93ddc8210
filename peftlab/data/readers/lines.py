"""Lines of a text file, each with its number and its fault."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from peftlab.errors import UserError

LONGEST_LINE = 4 * 1024 * 1024  # bytes; of UTF-16 and UTF-32 characters
MARKS = {  # the longest first: that of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
LATIN = "windows-1252"


class Line(NamedTuple):
    """One line of a file."""

    number: int
    """Counted from 1."""
    text: str
    """With its line ending; bytes that are not of the encoding are left out."""
    fault: str | None
    """Reason why the line cannot be used."""


def read_lines(path: Path, encoding: str | None = None) -> Iterator[Line]:
    """Every line; one that is not of the encoding, contains NUL or exceeds LONGEST_LINE has a fault. Raises UserError.

    `encoding` None: UTF-8, or by the byte order mark.
    """
    with open_file(path) as file:
        encoding = encoding or _marked(file)
        if _is_wide(encoding):
            yield from _wide_lines(path, file, encoding)
            return
        for number, raw in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
            if len(raw) > LONGEST_LINE:
                rest = raw
                while rest and not rest.endswith(b"\n"):
                    rest = file.readline(LONGEST_LINE)
                yield Line(number, "", f"a line of more than {LONGEST_LINE} bytes")
                continue
            decoder = "utf-8-sig" if number == 1 and encoding == "utf-8" else encoding
            try:
                yield Line(number, raw.decode(decoder), _nul(raw.count(b"\0"), len(raw)))
            except UnicodeDecodeError as error:
                yield Line(number, raw.decode(decoder, errors="ignore"), _not_in(encoding, error))


def read_whole(path: Path, encoding: str | None = None) -> str:
    """The text of a file. Raises UserError."""
    with open_file(path) as file:
        encoding = encoding or _marked(file)
        content = file.read()
    try:
        return content.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeError as error:
        if not isinstance(error, UnicodeDecodeError) or _is_wide(encoding):
            raise UserError(f"{path}: not {encoding}: {error}") from None
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: {_not_in(encoding, error)}") from None


def check_encoding(name: str) -> str:
    """The codec's name. Raises ValueError for a name that Python does not know, or that is no encoding of text."""
    try:
        codec = codecs.lookup(name)
        "a\n".encode(codec.name)
    except (LookupError, ValueError):
        raise ValueError(f"{name!r} is no known encoding, e.g. utf-8, utf-16, {LATIN}") from None
    return codec.name


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[gzip.GzipFile | io.BufferedReader]:
    """The bytes of a file, decompressed if it is a .gz. Raises UserError if it cannot be read."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except ValueError as error:  # a path with a NUL character
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: cannot be read: {error}") from None


def _marked(file: gzip.GzipFile | io.BufferedReader) -> str:
    """The encoding of the byte order mark at the start, or UTF-8."""
    start = file.peek(4)[:4]
    return next((encoding for mark, encoding in MARKS.items() if start.startswith(mark)), "utf-8")


def _is_wide(encoding: str) -> bool:
    """True if a line feed is more than one byte, so that lines are found in the text only."""
    return "\n".encode(encoding) != b"\n"


def _wide_lines(path: Path, file: gzip.GzipFile | io.BufferedReader, encoding: str) -> Iterator[Line]:
    number = 0
    with io.TextIOWrapper(file, encoding=encoding, newline="\n") as text:
        try:
            for number, line in enumerate(iter(lambda: text.readline(LONGEST_LINE + 1), ""), start=1):
                if len(line) > LONGEST_LINE:
                    while line and not line.endswith("\n"):
                        line = text.readline(LONGEST_LINE)
                    yield Line(number, "", f"a line of more than {LONGEST_LINE} characters")
                    continue
                yield Line(number, line.removeprefix("\ufeff"), _nul(line.count("\0"), len(line)))
        except UnicodeError as error:
            raise UserError(f"{path}:{number + 1}: not {encoding}: {error}") from None


def _nul(count: int, length: int) -> str | None:
    if not count:
        return None
    wide = "; if it is UTF-16, set data.encoding: utf-16-le or utf-16-be" if 3 * count > length else ""
    return f"a NUL byte{wide}"


def _not_in(encoding: str, error: UnicodeDecodeError) -> str:
    name = encoding.upper() if encoding.startswith("utf") else encoding
    try:
        error.object.decode(LATIN)
    except UnicodeDecodeError:
        hint = "; data.encoding names another encoding" if encoding == "utf-8" else ""
    else:
        hint = f"; if it is {LATIN}, set data.encoding: {LATIN}" if encoding == "utf-8" else ""
    return f"not {name}: byte 0x{error.object[error.start]:02x}{hint}"
