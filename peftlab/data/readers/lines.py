"""The lines of a text file, each with its number and what is wrong with it."""

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
    number: int  # from 1
    text: str  # with its end; without what is no UTF-8
    fault: str | None


def read_lines(path: Path) -> Iterator[Line]:
    """Every line; one that is not UTF-8, holds NUL or is absurdly long has a fault. Raises UserError for the file."""
    with opened(path) as file:
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
def opened(path: Path) -> Iterator[gzip.GzipFile | io.BufferedReader]:
    """The bytes of a file, unpacked if it is a .gz. Raises UserError if it cannot be read."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
