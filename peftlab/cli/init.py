"""`peftlab init`: write a first recipe for a data file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from peftlab.cli.command import command
from peftlab.errors import UserError, nearest
from peftlab.methods import METHODS
from peftlab.tasks import TASKS


@command()
def init(
    train: Annotated[
        list[Path],
        typer.Option(help="Data file: jsonl, json, csv, tsv, parquet, conll, txt; repeated for several files."),
    ] = [],  # noqa: B006
    task: Annotated[str | None, typer.Option(help="Task of its rows; guessed if not given.")] = None,
    model: Annotated[str | None, typer.Option(help="Base model: a Hub id or a folder.")] = None,
    method: Annotated[str | None, typer.Option(help="Method, as listed by `peftlab list`.")] = None,
    columns: Annotated[
        list[str], typer.Option("--column", help="FIELD=COLUMN, if it cannot be guessed; may be repeated.")
    ] = [],  # noqa: B006
    name: Annotated[str | None, typer.Option(help="Name of the run; made of method and file if not given.")] = None,
    output: Annotated[Path | None, typer.Option(help="Recipe to write; NAME.yaml if not given.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing recipe.")] = False,
) -> None:
    """Write a first recipe for your own data file.

    Guesses the task and its columns from the rows. On a terminal it asks for what is not given.
    """
    from peftlab.cli.file_guess import read_sample
    from peftlab.cli.recipe_draft import Draft, default_name, write
    from peftlab.cli.task_guess import candidates, guess, valid_rows

    sample = read_sample(train or [Path(_answer(None, "train", "Data file"))])
    rows = valid_rows(sample)
    _check_kind(task, TASKS, "task")
    assigned = dict(_assignment(column) for column in columns)
    if task is None and sys.stdin.isatty():
        likely = candidates(rows, assigned)
        task = _answer(None, "task", f"Task ({', '.join(TASKS)})", likely[0].kind if likely else None)
        _check_kind(task, TASKS, "task")
    candidate = guess(rows, assigned, task)
    base = _answer(model, "model", "Base model, a Hub id or a folder", TASKS[candidate.kind].default_model)
    method = _answer(method, "method", f"Method ({', '.join(METHODS)})", "lora")
    _check_kind(method, METHODS, "method")
    name = name or default_name(sample.paths[0], method)
    draft = Draft(task=candidate, sample=sample, rows=len(rows), model=base, method=method, name=name)
    for line in write(draft, output or Path(f"{name}.yaml"), force=force):
        print(line)


def _answer(value: str | None, option: str, question: str, default: str | None = None) -> str:
    """The option's value, the answer at a terminal, or the default."""
    if value is not None:
        return value
    if sys.stdin.isatty():
        try:
            return str(typer.prompt(question, default=default))
        except typer.Abort:  # the terminal's end of input
            raise UserError(f"init: no answer; use --{option}") from None
    if default is None:
        raise UserError(f"init: --{option} is missing")
    return default


def _check_kind(kind: str | None, components: Mapping[str, object], option: str) -> None:
    if kind is not None and kind not in components:
        raise UserError(f"--{option} {kind}: unknown{nearest(kind, components)}; known are {', '.join(components)}")


def _assignment(text: str) -> tuple[str, str]:
    field, equals, column = text.partition("=")
    if not (field and equals and column):
        raise UserError(f"--column {text}: expected FIELD=COLUMN, e.g. labels=ner_tags")
    return field, column
