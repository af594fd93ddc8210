"""`peftlab predict`: apply a fine-tuned model to texts or rows."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from peftlab.cli.command import command
from peftlab.cli.inputs import given_rows, given_texts, read_options
from peftlab.cli.options import RunFolder, Trust
from peftlab.results.result_file import data_of


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
    data = data_of(folder)
    rows = given_rows(text, read_options(data))
    lines, source = given_texts(text) if rows is None else ([], text)
    from peftlab.runs.inference import answers, rows_from_file, rows_from_lines

    columns = data.get("columns") or {}
    for answer in answers(
        folder,
        lambda task: rows_from_lines(task, lines, source) if rows is None else rows_from_file(task, rows, columns),
        trust,
    ):
        print(json.dumps(answer, ensure_ascii=False))
