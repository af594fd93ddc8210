"""CoNLL columns: a token a line, a blank line between sentences."""

from __future__ import annotations

import re
from pathlib import Path

from peftlab.data.examples import Row
from peftlab.data.readers.lines import read_lines

COMMENT = re.compile(r"# \w+ = ")  # CoNLL-U's, e.g. "# sent_id = 1"

UNIVERSAL = 10  # columns of CoNLL-U: number, word, lemma, universal part of speech, ...


def read_conll(path: Path, columns: tuple[str, ...] = ("tokens", "labels")) -> list[Row]:
    """Sentences of token-per-line columns; `-DOCSTART-` lines and CoNLL-U's comments are skipped.

    With two columns and more in the file, the first and the last are read; of CoNLL-U's ten (the first token's number
    is 1), the word and its universal part of speech. A bad line makes its sentence bad.
    """
    rows: list[Row] = []
    fields: list[list[str]] = []
    faults: list[Row] = []  # of the sentence
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

    for number, line, fault in read_lines(path):
        # Only blanks and tabs part columns: a token may hold any other space.
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
        outer = len(columns) == 2 and width > 2  # of more columns, the first and the last
        if len(parts) != (width if outer else len(columns)):
            wanted = f"{width} as on line {first}" if outer else f"{len(columns)} ({', '.join(columns)})"
            faults.append(Row(f"{path}:{number}", {}, f"{len(parts)} columns, wanted {wanted}"))
            continue
        if universal and not parts[0].isdigit():  # 3-4 is written as one word, 3.1 not at all
            continue
        if outer:
            parts = [parts[1], parts[3]] if universal else [parts[0], parts[-1]]
        start = start if fields else number
        fields.append(parts)
    close()
    return rows
