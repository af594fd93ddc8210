"""Tables as text, with column names in the first line: CSV with quotes (RFC 4180), TSV without (IANA)."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from peftlab.data.examples import Row
from peftlab.data.readers.lines import LONGEST_LINE, read_lines
from peftlab.errors import UserError

DELIMITERS = ",;|"
Quoting = Literal[0, 3]  # csv.QUOTE_MINIMAL, csv.QUOTE_NONE


def read_csv(path: Path) -> list[Row]:
    """One row per record. Every value is a string, numbers too. Empty lines are skipped.

    The delimiter is a comma, or the semicolon or bar if it splits the first line into more columns.
    """
    return _read(path, delimiter=None)


def read_tsv(path: Path) -> list[Row]:
    """As `read_csv`, but separated by tabs, and without quoting."""
    return _read(path, delimiter="\t")


def _read(path: Path, delimiter: str | None) -> list[Row]:
    faults: dict[int, str] = {}  # by line

    def texts() -> Iterator[str]:
        for number, line, fault in read_lines(path):
            if fault is not None:
                faults[number] = fault
            yield line or "\n"

    lines = texts()
    head = next(lines, "")
    if faults:
        raise UserError(f"{path}:1: {faults[1]}")
    csv.field_size_limit(LONGEST_LINE)
    quoting: Quoting = csv.QUOTE_MINIMAL if delimiter is None else csv.QUOTE_NONE
    delimiter, names = _header(path, head, delimiter, quoting)
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    rows: list[Row] = []
    previous = 1  # last line before the record
    while True:
        where = f"{path}:{previous + 1}"
        try:
            record = next(reader, None)
            fault = None
        except csv.Error as error:
            if "unexpected end of data" in str(error):  # the quoted cell extends to the end of the file
                raise UserError(f"{where}: a quotation mark that is never closed") from None
            record, fault = [], f"not CSV: {error}"
        if record is None:
            return rows
        last = reader.line_num + 1
        bad_lines = [faults[number] for number in range(previous + 1, last + 1) if number in faults]
        previous = last
        if not record and not bad_lines and fault is None:
            continue
        if len(record) != len(names):
            fault = fault or f"{len(record)} columns, expected {len(names)} as on line 1"
        fault = bad_lines[0] if bad_lines else fault
        rows.append(Row(where, {} if fault else dict(zip(names, record, strict=True)), fault))


def _header(path: Path, head: str, delimiter: str | None, quoting: Quoting) -> tuple[str, list[str]]:
    """The delimiter (None: by the first line) and the column names. Raises UserError if the names are bad."""
    if "\r" in head.rstrip("\r\n"):
        raise UserError(f"{path}:1: lines end in a carriage return alone; a line feed, or both, was expected")
    if delimiter is None and head.count('"') % 2:
        raise UserError(f"{path}:1: a column name continues on the next line; the first line names the columns")
    headers = {sign: next(csv.reader([head], delimiter=sign, quoting=quoting), []) for sign in delimiter or DELIMITERS}
    delimiter = max(headers, key=lambda sign: len(headers[sign]))  # the first one, if several give as many columns
    names = [name.strip() for name in headers[delimiter]]
    if not names:
        raise UserError(f"{path}:1: is empty; the first line names the columns")
    for position, name in enumerate(names):
        if not name.strip():
            raise UserError(f"{path}:1: column {position + 1} has no name; the first line names the columns")
        if name in names[:position]:
            raise UserError(f"{path}:1: two columns are named {name!r}")
    return delimiter, names
