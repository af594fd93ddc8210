"""CoNLL columns: one token per line, an empty line between sentences."""

from __future__ import annotations

import re
from pathlib import Path

from peftlab.data.examples import Row
from peftlab.data.readers.lines import read_lines
from peftlab.data.readers.options import DEFAULT, ReadOptions

COMMENT = re.compile(r"# \w+ = ")  # CoNLL-U's, e.g. "# sent_id = 1"

UNIVERSAL = 10  # columns of CoNLL-U: number, word, lemma, universal part of speech, ...


def read_conll(
    path: Path, options: ReadOptions = DEFAULT, columns: tuple[str, ...] = ("tokens", "labels")
) -> list[Row]:
    """One row per sentence. `-DOCSTART-` lines and CoNLL-U comments are skipped. A bad line makes its sentence bad.

    For two `columns`, a file with more has them in its first and last; CoNLL-U (ten columns, tokens numbered from 1)
    has the word and its universal part of speech.
    """
    rows: list[Row] = []
    fields: list[list[str]] = []
    faults: list[Row] = []  # of the current sentence
    start = width = first = 0
    universal = False

    def close() -> None:
        if faults:
            rows.append(faults[0])
        elif fields:
            values = {name: list(column) for name, column in zip(columns, zip(*fields, strict=True), strict=True)}
            rows.append(Row(f"{path}:{start}", values))
        fields.clear()
        faults.clear()

    for number, line, fault in read_lines(path, options.encoding):
        # Columns are separated by blanks and tabs only: a token may contain any other space.
        parts = [part for part in re.split("\t" if "\t" in line else " ", line.strip(" \t\r\n")) if part]
        if fault is not None:
            faults.append(Row(f"{path}:{number}", {}, fault))
            continue
        if not parts or parts[0] == "-DOCSTART-":
            close()
            continue
        if COMMENT.match(line):
            continue
        if not width and len(parts) >= len(columns):
            width, first = len(parts), number
            universal = len(columns) == 2 and width == UNIVERSAL and parts[0] == "1" and "\t" in line
        outer = len(columns) == 2 and width > 2  # read the first and the last of more columns
        if len(parts) != (width if outer else len(columns)):
            expected = f"{width} as on line {first}" if outer else f"{len(columns)} ({', '.join(columns)})"
            faults.append(Row(f"{path}:{number}", {}, f"{len(parts)} columns, expected {expected}"))
            continue
        if universal and not parts[0].isdigit():  # 3-4 is a multiword token, 3.1 an empty node
            continue
        if outer:
            parts = [parts[1], parts[3]] if universal else [parts[0], parts[-1]]
        start = start if fields else number
        fields.append(parts)
    close()
    return rows
