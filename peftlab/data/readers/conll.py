"""CoNLL columns: one token per line, an empty line between sentences."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from peftlab.data.examples import Row
from peftlab.data.readers.conll_columns import recognize
from peftlab.data.readers.lines import read_lines
from peftlab.data.readers.options import DEFAULT, ReadOptions
from peftlab.errors import UserError

COMMENT = re.compile(r"# \w+ = |#(begin|end) document\b")  # of CoNLL-U, e.g. "# sent_id = 1", and of CoNLL-2012
REMARK = re.compile(r"#[ \t]+\S")  # a comment if it stands before a sentence and has not the columns of a token


class Token(NamedTuple):
    """One line that is no comment."""

    number: int
    parts: list[str]
    fault: str | None


def read_conll(
    path: Path, options: ReadOptions = DEFAULT, columns: tuple[str, ...] = ("tokens", "labels")
) -> list[Row]:
    """One row per sentence. `-DOCSTART-` lines and comments are skipped. A bad line makes its sentence bad.

    For two `columns`, a file with more has them where `options.conll_columns` says, or where their content shows it
    (see `recognize`). Raises UserError if that is ambiguous.
    """
    sentences = list(_sentences(path, options))
    widths = Counter(
        len(token.parts) for sentence in sentences for token in sentence if token.fault is None and not _remark(token)
    )
    width = max((width for width in widths if width >= len(columns)), key=lambda width: widths[width], default=0)
    sentences = [_without_remarks(sentence, width) for sentence in sentences]
    tokens = [token for sentence in sentences for token in sentence]
    first = next((token.number for token in tokens if len(token.parts) == width), 0)
    if options.conll_columns is not None:
        positions = _given(path, options.conll_columns, columns, width)
    elif len(columns) == 2 and width:
        parts = [[token.parts for token in sentence if len(token.parts) == width] for sentence in sentences]
        universal = any("\t" in line for _, line, _ in read_lines(path, options.encoding)) if width == 10 else False
        positions = recognize(f"{path}:{first}", [sentence for sentence in parts if sentence], universal=universal)
    else:
        width, positions = len(columns), {name: position for position, name in enumerate(columns)}
    expected = (
        f"{width} as on line {first}"
        if first and width > len(columns)
        else f"{width or len(columns)} ({', '.join(columns)})"
    )
    rows = []
    for sentence in sentences:
        fields = []
        fault = None
        for token in sentence:
            if token.fault is None and len(token.parts) != width:
                token = Token(token.number, [], f"{len(token.parts)} columns, expected {expected}")
            if token.fault is not None:
                fault = Row(f"{path}:{token.number}", {}, token.fault)
                break
            if positions.get("number") is None or token.parts[positions["number"]].isdigit():
                fields.append(token)  # in CoNLL-U, 3-4 is a multiword token, 3.1 an empty node
        if fault is not None:
            rows.append(fault)
        elif fields:
            values = {name: [token.parts[positions[name]] for token in fields] for name in columns}
            rows.append(Row(f"{path}:{fields[0].number}", values))
    return rows


def _sentences(path: Path, options: ReadOptions) -> Iterator[list[Token]]:
    sentence: list[Token] = []
    for number, line, fault in read_lines(path, options.encoding):
        # Columns are separated by blanks and tabs only: a token may contain any other space.
        parts = [part for part in re.split("\t" if "\t" in line else " ", line.strip(" \t\r\n")) if part]
        if fault is None and (not parts or parts[0] == "-DOCSTART-"):
            yield sentence
            sentence = []
        elif fault is not None or not COMMENT.match(line):
            sentence.append(Token(number, parts, fault))
    yield sentence


def _remark(token: Token) -> bool:
    return token.parts[:1] == ["#"] and len(token.parts) > 1


def _without_remarks(sentence: list[Token], width: int) -> list[Token]:
    """The sentence without comments before it, which begin with # and have not the columns of a token."""
    start = 0
    while start < len(sentence) and _remark(sentence[start]) and len(sentence[start].parts) != width:
        start += 1
    return sentence[start:]


def _given(path: Path, given: Mapping[str, int], columns: Sequence[str], width: int) -> dict[str, int]:
    """Position from 0 of each column that the user names. Raises UserError."""
    positions = {}
    for name in columns:
        if name not in given:
            raise UserError(f"data.conll_columns: {name} is missing; write {{{', '.join(f'{n}: N' for n in columns)}}}")
        position = given[name] - 1 if given[name] > 0 else width + given[name]
        if not 0 <= position < width:
            raise UserError(f"data.conll_columns: {name}: {given[name]}, but {path} has {width} columns")
        positions[name] = position
    other = next((name for name in given if name not in columns), None)
    if other is not None:
        raise UserError(f"data.conll_columns: {other!r} is none of {', '.join(columns)}")
    return positions
