"""Plain text: each line is a row with the field `text`."""

from __future__ import annotations

from pathlib import Path

from peftlab.data.examples import Row
from peftlab.data.readers.lines import read_lines


def read_text(path: Path) -> list[Row]:
    """Lines without their line endings; empty ones are skipped."""
    return [
        Row(f"{path}:{number}", {} if fault else {"text": line.rstrip("\r\n")}, fault)
        for number, line, fault in read_lines(path)
        if fault or line.strip()
    ]
