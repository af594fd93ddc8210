"""Tables as text: CSV with quotes (RFC 4180), TSV without (IANA)."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from peftlab.data.examples import Row, Unreadable
from peftlab.data.readers.lines import LONGEST_LINE, read_lines
from peftlab.data.readers.options import DEFAULT, ReadOptions
from peftlab.errors import UserError

DELIMITERS = ",;|\t"
EXCEL = re.compile(r"sep=(.)\s*", re.IGNORECASE)  # Excel's first line, which names the delimiter
Quoting = Literal[0, 3]  # csv.QUOTE_MINIMAL, csv.QUOTE_NONE


def read_csv(path: Path, options: ReadOptions = DEFAULT) -> list[Row]:
    """One row per record. Every value is a string, numbers too. Empty lines are skipped.

    The delimiter is the comma, semicolon, bar or tab that splits the first line into the most columns. Columns without
    a name, such as the index that pandas writes, are left out.
    """
    return _read(path, options, delimiter=None)


def read_tsv(path: Path, options: ReadOptions = DEFAULT) -> list[Row]:
    """As `read_csv`, but separated by tabs, and without quoting."""
    return _read(path, options, delimiter="\t")


def _read(path: Path, options: ReadOptions, delimiter: str | None) -> list[Row]:
    faults: dict[int, str] = {}  # by line

    def texts() -> Iterator[str]:
        for number, line, fault in read_lines(path, options.encoding):
            if fault is not None:
                faults[number] = fault
            yield line or "\n"

    lines = texts()
    head, before = next(lines, ""), 1
    if delimiter is None and (named := EXCEL.fullmatch(head)):
        delimiter, head, before = named.group(1), next(lines, ""), 2
        quoting: Quoting = csv.QUOTE_MINIMAL
    else:
        quoting = csv.QUOTE_MINIMAL if delimiter is None else csv.QUOTE_NONE
    if before in faults:
        raise UserError(f"{path}:{before}: {faults[before]}")
    if "\r" in head.rstrip("\r\n"):
        raise UserError(f"{path}:{before}: lines end in a carriage return alone; a line feed, or both, was expected")
    csv.field_size_limit(LONGEST_LINE)
    delimiter, names = _split_head(head, delimiter, quoting)
    if options.header is False or (options.header is None and options.names):
        lines, before = itertools.chain([head], lines), before - 1
        names = [str(position + 1) for position in range(len(names))]
    else:
        _check_head(path, head, before, names, quoting)
    if options.names:
        if len(options.names) != len(names):
            raise UserError(f"{path}:1: {len(names)} columns, but data.names has {len(options.names)}")
        names = list(options.names)
    duplicate = {
        name: Unreadable(f"two columns are named {name!r}; data.header: true and data.names rename them")
        for name in names
        if names.count(name) > 1
        if name
    }

    def record_values(record: Sequence[str]) -> dict[str, Any]:
        values: dict[str, Any] = {name: value for name, value in zip(names, record, strict=True) if name}
        return values | duplicate if duplicate else values

    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    rows: list[Row] = []
    previous = before  # last line before the record
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
        last = reader.line_num + before
        bad_lines = [faults[number] for number in range(previous + 1, last + 1) if number in faults]
        previous = last
        if not record and not bad_lines and fault is None:
            continue
        if len(record) != len(names):
            fault = fault or f"{len(record)} columns, expected {len(names)} as on line {max(before, 1)}"
            if quoting == csv.QUOTE_NONE and any(cell.startswith('"') for cell in record):
                raise UserError(f"{where}: {fault}; if cells are in quotation marks, set data.format: csv")
        fault = bad_lines[0] if bad_lines else fault
        rows.append(Row(where, {} if fault else record_values(record), fault))


def _split_head(head: str, delimiter: str | None, quoting: Quoting) -> tuple[str, list[str]]:
    """The delimiter (None: by the first line) and the cells of the first line."""
    heads = {sign: next(csv.reader([head], delimiter=sign, quoting=quoting), []) for sign in delimiter or DELIMITERS}
    delimiter = max(heads, key=lambda sign: len(heads[sign]))  # the first one, if several give as many columns
    return delimiter, [name.strip() for name in heads[delimiter]]


def _check_head(path: Path, head: str, number: int, names: Sequence[str], quoting: Quoting) -> None:
    """Raise UserError if the first line cannot be the names of the columns."""
    if not any(names):
        raise UserError(f"{path}:{number}: is empty; the first line names the columns")
    if quoting == csv.QUOTE_MINIMAL and head.count('"') % 2:
        raise UserError(
            f"{path}:{number}: a column name continues on the next line; the first line names the columns; "
            "if it is data, name them in data.names: [NAME, ...]"
        )
