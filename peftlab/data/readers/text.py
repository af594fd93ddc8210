"""Plain text: each line is a row with the field `text`, or two parallel files of which each line is a pair."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from peftlab.data.examples import Row
from peftlab.data.readers.lines import read_lines
from peftlab.data.readers.options import DEFAULT, ReadOptions
from peftlab.errors import UserError


def read_text(path: Path, options: ReadOptions = DEFAULT) -> list[Row]:
    """Lines without their line endings; empty ones are skipped."""
    return [
        Row(f"{path}:{number}", {} if fault else {"text": line.rstrip("\r\n")}, fault)
        for number, line, fault in read_lines(path, options.encoding)
        if fault or line.strip()
    ]


def read_parallel(paths: Mapping[str, Path], options: ReadOptions = DEFAULT) -> list[Row]:
    """Line N of every file is row N; `paths` are files by column. Raises UserError if the numbers of lines differ."""
    lines = {column: list(read_lines(path, options.encoding)) for column, path in paths.items()}
    counts = {paths[column]: len(part) for column, part in lines.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{path} has {count}" for path, count in counts.items())
        raise UserError(f"data: parallel files need as many lines as each other: {listed}")
    first = next(iter(paths.values()))
    rows = []
    for group in zip(*lines.values(), strict=True):
        fault = next((line.fault for line in group if line.fault is not None), None)
        values = {column: line.text.rstrip("\r\n") for column, line in zip(paths, group, strict=True)}
        rows.append(Row(f"{first}:{group[0].number}", {} if fault else values, fault))
    return rows
