"""`peftlab predict`: apply a fine-tuned model to texts or rows."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from peftlab.cli.command import command
from peftlab.cli.find_run import find_run
from peftlab.cli.inputs import given_rows, given_texts, read_options
from peftlab.cli.options import RunFolder, Trust
from peftlab.errors import UserError
from peftlab.results.result_file import data_of


@command()
def predict(
    folder: RunFolder,
    text: Annotated[
        str,
        typer.Argument(metavar="TEXT|FILE|-", help="A text, a file of lines or rows, or - for standard input."),
    ] = "-",
    trust: Trust = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", min=1, help="Also print the K most probable labels with probabilities.")
    ] = None,
    all_scores: Annotated[
        bool, typer.Option("--all-scores", help="Also print the probability of every label.")
    ] = False,
    score: Annotated[
        bool, typer.Option("--score", help="FILE has labels: print the metrics of its rows on standard error.")
    ] = False,
) -> None:
    """Apply a fine-tuned model; print one JSON object per input."""
    folder = find_run(folder)
    data = data_of(folder)
    rows = given_rows(text, read_options(data))
    lines, source = given_texts(text) if rows is None else ([], text)
    if score and rows is None:
        raise UserError(f"--score: {text[:60]}: not a file of rows with labels, e.g. .jsonl or .csv")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a finished run, e.g. runs/NAME/DIGEST")
    from peftlab.runs.inference import Request, answers, labeled_rows, rows_from_file, rows_from_lines

    columns = data.get("columns") or {}
    request = Request(scored=score, top=sys.maxsize if all_scores else top_k)
    from_file = labeled_rows if score else rows_from_file
    for answer in answers(
        folder,
        lambda task: rows_from_lines(task, lines, source) if rows is None else from_file(task, rows, columns),
        trust,
        request,
    ):
        print(json.dumps(answer, ensure_ascii=False))
    if score:
        print("  ".join(f"{name} {value:.4f}" for name, value in request.metrics.items()), file=sys.stderr)
