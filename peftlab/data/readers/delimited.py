"""Tables as text, the first line naming the columns: CSV with quotes (RFC 4180), TSV without any (IANA)."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from peftlab.data.examples import Row
from peftlab.data.readers.lines import LONGEST_LINE, read_lines
from peftlab.errors import UserError

SIGNS = ",;|"


def read_csv(path: Path) -> list[Row]:
    """Every value is a string, numbers too, unless `data.numbers` names the column. Blank lines are skipped.

    Commas part the columns, or semicolons or bars if they part the first line into more.
    """
    return _read(path, delimiter=None)


def read_tsv(path: Path) -> list[Row]:
    """As `read_csv`, but parted by tabs, and a quotation mark is a character like any other."""
    return _read(path, delimiter="\t")


def _read(path: Path, delimiter: str | None) -> list[Row]:
    faults: dict[int, str] = {}  # by line
    before = 0  # lines of the records so far

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
    if "\r" in head.rstrip("\r\n"):
        raise UserError(f"{path}:1: its lines end in a carriage return alone; want a line feed, or both")
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if delimiter is None else csv.QUOTE_NONE
    if delimiter is None and head.count('"') % 2:
        raise UserError(f"{path}:1: a column's name goes on in the next line; the first line names the columns")
    headers = {sign: next(csv.reader([head], delimiter=sign, quoting=quoting), []) for sign in delimiter or SIGNS}
    sign = max(headers, key=lambda sign: len(headers[sign]))  # the first of those that part it alike
    names = [name.strip() for name in headers[sign]]
    _check_names(path, names)
    reader = csv.reader(lines, delimiter=sign, quoting=quoting, strict=True)
    rows: list[Row] = []
    while True:
        where = f"{path}:{before + 2}"
        try:
            record = next(reader, None)
            fault = None
        except csv.Error as error:
            if "unexpected end of data" in str(error):  # it has swallowed all that follows
                raise UserError(f"{where}: a quotation mark that is never closed") from None
            record, fault = [], f"not CSV: {error}"
        if record is None:
            return rows
        broken = [faults[number] for number in range(before + 2, reader.line_num + 2) if number in faults]
        before = reader.line_num
        if not record and not broken and fault is None:
            continue
        if len(record) != len(names):
            fault = fault or f"{len(record)} columns, wanted {len(names)} as on line 1"
        fault = broken[0] if broken else fault
        rows.append(Row(where, {} if fault else dict(zip(names, record, strict=True)), fault))


def _check_names(path: Path, names: list[str]) -> None:
    if not names:
        raise UserError(f"{path}:1: is empty; the first line names the columns")
    for position, name in enumerate(names):
        if not name.strip():
            raise UserError(f"{path}:1: column {position + 1} has no name; the first line names the columns")
        if name in names[:position]:
            raise UserError(f"{path}:1: two columns are named {name!r}")
