"""Lines of a text file, each with its number and its fault."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from peftlab.errors import UserError

LONGEST_LINE = 4 * 1024 * 1024  # bytes


class Line(NamedTuple):
    """One line of a file."""

    number: int
    """Counted from 1."""
    text: str
    """With its line ending; bytes that are not UTF-8 are left out."""
    fault: str | None
    """Reason why the line cannot be used."""


def read_lines(path: Path) -> Iterator[Line]:
    """Every line; one that is not UTF-8, contains NUL or exceeds LONGEST_LINE has a fault. Raises UserError."""
    with open_file(path) as file:
        for number, raw in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
            if len(raw) > LONGEST_LINE:
                rest = raw
                while rest and not rest.endswith(b"\n"):
                    rest = file.readline(LONGEST_LINE)
                yield Line(number, "", f"a line of more than {LONGEST_LINE} bytes")
                continue
            encoding = "utf-8-sig" if number == 1 else "utf-8"
            try:
                yield Line(number, raw.decode(encoding), "a NUL byte" if b"\0" in raw else None)
            except UnicodeDecodeError as error:
                fault = f"not UTF-8: byte 0x{error.object[error.start]:02x}"
                yield Line(number, raw.decode(encoding, errors="ignore"), fault)


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[gzip.GzipFile | io.BufferedReader]:
    """The bytes of a file, decompressed if it is a .gz. Raises UserError if it cannot be read."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
