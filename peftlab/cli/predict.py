"""`peftlab predict`: apply a fine-tuned model to texts or rows."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from peftlab.cli.command import command
from peftlab.cli.inputs import given_rows, given_texts
from peftlab.cli.options import RunFolder, Trust
from peftlab.results.result_file import columns_of


@command()
def predict(
    folder: RunFolder,
    text: Annotated[
        str,
        typer.Argument(metavar="TEXT|FILE|-", help="A text, a file of lines or rows, or - for standard input."),
    ] = "-",
    trust: Trust = None,
) -> None:
    """Apply a fine-tuned model; print one JSON object per input."""
    rows = given_rows(text)
    lines, source = given_texts(text) if rows is None else ([], text)
    from peftlab.runs.inference import answers, rows_from_file, rows_from_lines

    columns = columns_of(folder)
    for answer in answers(
        folder,
        lambda task: rows_from_lines(task, lines, source) if rows is None else rows_from_file(task, rows, columns),
        trust,
    ):
        print(json.dumps(answer, ensure_ascii=False))
