"""Form of a data file: encoding, header, quotation and columns that its format leaves open."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peftlab.data.columns import flag
from peftlab.data.examples import Row, Unreadable
from peftlab.data.files import read_file
from peftlab.data.readers import Format, ReadOptions, ending_format, read_parallel
from peftlab.data.readers.conll_columns import AmbiguousColumns
from peftlab.data.readers.lines import LATIN, read_lines
from peftlab.errors import UserError

TABLES = ("csv", "tsv")
LABEL_NAMES = ("label", "labels", "class", "category", "target")
LONGEST_NAME = 60  # characters of a column's name
MOST_WORDS = 5  # of a column's name


@dataclass(frozen=True, kw_only=True)
class SampleFile:
    """Rows of a file, or of parallel files, and the settings of `data` that read them."""

    paths: tuple[Path, ...]
    rows: list[Row]
    settings: dict[str, Any]
    parallel: bool = False
    """True if line N of one file belongs to line N of the other."""


def read_sample(paths: Sequence[Path]) -> SampleFile:
    """Read files as they are most likely meant. Raises UserError."""
    if len(paths) > 1:
        return _several(paths)
    (path,) = paths
    format, options = ending_format(path), ReadOptions()
    settings: dict[str, Any] = {}
    if format not in (None, "parquet"):
        encoding = _encoding(path)
        if encoding is not None:
            options, settings = replace(options, encoding=encoding), {"encoding": encoding}
    if format == "tsv" and _is_quoted(path, options):
        format, settings = "csv", {**settings, "format": "csv"}
    try:
        rows = read_file(path, format, options)
        headless = format in TABLES and _is_headless(rows)
    except AmbiguousColumns as error:
        if error.proposed is None:
            raise
        options, headless = replace(options, conll_columns=error.proposed), False
        rows, settings = read_file(path, format, options), {**settings, "conll_columns": dict(error.proposed)}
    except UserError as error:
        if format not in TABLES or "data.names" not in str(error):
            raise
        headless = True
    if headless:
        names = _names(read_file(path, format, replace(options, header=False)))
        rows, settings = read_file(path, format, replace(options, names=names)), {**settings, "names": list(names)}
    return SampleFile(paths=(path,), rows=[_without_unreadable(row) for row in rows], settings=settings)


def with_labels(rows: Sequence[Row]) -> tuple[list[Row], tuple[str, ...]]:
    """The rows with a list `label` in place of their columns of 0 and 1, and these columns; none if fewer than two.

    >>> rows = [Row("1", {"text": "a", "toxic": "0", "threat": "1"}), Row("2", {"text": "b", "toxic": 1, "threat": 0})]
    >>> with_labels(rows)[1], with_labels(rows)[0][0].fields
    (('toxic', 'threat'), {'text': 'a', 'label': ['threat']})
    """
    names = [str(name) for name in rows[0].fields]
    if any(name.lower() in LABEL_NAMES for name in names):
        return list(rows), ()
    columns = tuple(
        name
        for name in names
        if all(flag(row.fields.get(name)) is not None for row in rows) and len({row.fields[name] for row in rows}) <= 2
    )
    if len(columns) < 2:
        return list(rows), ()
    made = []
    for row in rows:
        others = {name: value for name, value in row.fields.items() if name not in columns}
        made.append(Row(row.where, {**others, "label": [name for name in columns if flag(row.fields[name])]}))
    return made, columns


def with_paths(rows: Sequence[Row]) -> list[Row]:
    """The rows with the values inside of mappings as columns too, e.g. `translation.en`."""
    return [Row(row.where, {**row.fields, **_leaves(row.fields)}) for row in rows]


def _leaves(fields: Any, depth: int = 3) -> dict[str, Any]:
    """
    >>> _leaves({"a": {"b": 1, "c": {"d": "x"}}, "e": 2})
    {'a.b': 1, 'a.c.d': 'x'}
    """
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, dict) and depth:
            found |= {f"{name}.{key}": item for key, item in value.items() if not isinstance(item, dict)}
            found |= {f"{name}.{path}": item for path, item in _leaves(value, depth - 1).items()}
    return found


def _several(paths: Sequence[Path]) -> SampleFile:
    """Files of one form, or two text files whose lines belong together."""
    formats, listed = {ending_format(path) for path in paths}, ", ".join(map(str, paths))
    if len(paths) == 2 and formats <= {None, "text"}:
        return _parallel(paths)
    if len(formats) > 1:
        raise UserError(f"--train {listed}: files of one format, or two text files of lines, were expected")
    samples = [read_sample([path]) for path in paths]
    if any(sample.settings != samples[0].settings for sample in samples):
        raise UserError(f"--train {listed}: the files differ in encoding, header or columns; name them in data.parts")
    rows = [row for sample in samples for row in sample.rows]
    return SampleFile(paths=tuple(paths), rows=rows, settings=samples[0].settings)


def _parallel(paths: Sequence[Path]) -> SampleFile:
    files = dict(zip(("source", "target"), paths, strict=True))
    rows = [row for row in read_parallel(files) if row.fault is None]
    return SampleFile(paths=tuple(paths), rows=rows, settings={}, parallel=True)


def _without_unreadable(row: Row) -> Row:
    values = {name: value for name, value in row.fields.items() if not isinstance(value, Unreadable)}
    return row if len(values) == len(row.fields) else replace(row, fields=values)


def _encoding(path: Path) -> str | None:
    """windows-1252 or UTF-16 if the file is not UTF-8 but can be read so; None otherwise."""
    fault = next((line.fault for line in read_lines(path) if line.fault is not None), "")
    tried = (LATIN,) if "not UTF-8" in fault else ("utf-16-le", "utf-16-be") if "UTF-16" in fault else ()
    for encoding in tried:
        try:
            lines = list(read_lines(path, encoding))
        except UserError:
            continue
        text = "".join(line.text for line in lines)
        if not any(line.fault for line in lines) and "\n" in text:
            return encoding
    return None


def _is_quoted(path: Path, options: ReadOptions) -> bool:
    """True if a .tsv file has its cells in quotation marks, which TSV has not."""
    with_quotes: list[Row] = []
    formats: tuple[Format, Format] = ("tsv", "csv")
    try:
        plain = read_file(path, formats[0], options)
    except UserError:
        plain = []
    try:
        with_quotes = read_file(path, formats[1], options)
    except UserError:
        return False
    quoted = sum(any(_in_quotes(str(value)) for value in row.fields.values()) for row in plain)
    good = [row for row in with_quotes if row.fault is None]
    return 2 * len(good) > len(with_quotes) and (not plain or 2 * quoted > len(plain))


def _in_quotes(cell: str) -> bool:
    return len(cell) > 1 and cell.startswith('"') and cell.endswith('"')


def _is_headless(rows: Sequence[Row]) -> bool:
    """True if the names of the columns look like data: a number, a sentence, or a value of their own column."""
    good = [row for row in rows if row.fault is None]
    if not good:
        return False
    for name in good[0].fields:
        values = [str(row.fields.get(name, "")).strip() for row in good]
        if re.fullmatch(r"[+-]?\d+(\.\d+)?", name) or len(name) > LONGEST_NAME or len(name.split()) > MOST_WORDS:
            return True
        if values.count(name) > 1 and len(set(values)) <= len(values) / 2:
            return True
    return False


def _names(rows: Sequence[Row]) -> tuple[str, ...]:
    """Names for columns without any: `text` is the longest on average, `label` the one with the fewest values."""
    good = [row for row in rows if row.fault is None]
    columns = {name: [str(row.fields[name]) for row in good] for name in good[0].fields}
    text = max(columns, key=lambda name: sum(map(len, columns[name])))
    others = {name: len(set(values)) for name, values in columns.items() if name != text}
    label = min(others, key=lambda name: others[name], default=None)
    if label is not None and (others[label] < 2 or others[label] > max(2, len(good) / 2)):
        label = None
    return tuple("text" if name == text else "label" if name == label else f"column{name}" for name in columns)
