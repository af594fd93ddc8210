"""File formats: each reader gives rows that know their file and line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from peftlab.examples import Row
from peftlab.part import BadInput

COMMENT = re.compile(r"# \w+ = ")  # CoNLL-U's, e.g. "# sent_id = 1"
LONGEST_LINE = 4 * 1024 * 1024  # bytes


def read_conll(path: Path, columns: tuple[str, ...] = ("tokens", "labels")) -> list[Row]:
    """Sentences of token-per-line columns, separated by blank lines; `-DOCSTART-` lines are skipped.

    With two columns and more in the file, the first and the last are read. Raises BadInput with file and line.
    """
    rows: list[Row] = []
    fields: list[list[str]] = []
    start = 0

    def close() -> None:
        if fields:
            values = {name: list(column) for name, column in zip(columns, zip(*fields, strict=True), strict=True)}
            rows.append(Row(f"{path.name}:{start}", values))
            fields.clear()

    for number, line in _lines(path):
        # Only blanks and tabs part columns: a token may hold any other space.
        parts = [part for part in re.split("\t" if "\t" in line else " ", line.strip(" \t\r\n")) if part]
        if not parts or parts[0] == "-DOCSTART-":
            close()
            continue
        if COMMENT.match(line):
            continue
        if len(columns) == 2 and len(parts) > 2:
            parts = [parts[0], parts[-1]]
        if len(parts) != len(columns):
            raise BadInput(f"{path}:{number}: {len(parts)} columns, wanted {len(columns)} ({', '.join(columns)})")
        start = start if fields else number
        fields.append(parts)
    close()
    return rows


def read_jsonl(path: Path) -> list[Row]:
    """One JSON object a line; blank lines are skipped. Raises BadInput with file and line."""
    rows = []
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:  # bad JSON, or a number of thousands of digits
            raise BadInput(f"{path}:{number}: not JSON: {error}") from None
        except RecursionError:
            raise BadInput(f"{path}:{number}: nested too deeply") from None
        if "\\ud" in line.lower() and not _encodable(value):
            raise BadInput(f"{path}:{number}: half of a surrogate pair, which is no character")
        if not isinstance(value, dict):
            raise BadInput(f"{path}:{number}: a JSON object was expected, found {type(value).__name__}")
        rows.append(Row(f"{path.name}:{number}", value))
    return rows


def _encodable(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines as text. Refuses what is not UTF-8, holds NUL or is absurdly long."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
                if len(raw) > LONGEST_LINE:
                    raise BadInput(f"{path}:{number}: a line of more than {LONGEST_LINE} bytes")
                if b"\0" in raw:
                    raise BadInput(f"{path}:{number}: a NUL byte")
                try:
                    yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise BadInput(f"{path}:{number}: not UTF-8: byte 0x{raw[error.start]:02x}") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None


READERS = {".jsonl": read_jsonl, ".conll": read_conll, ".txt": read_conll, ".tsv": read_conll}
