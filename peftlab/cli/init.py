"""`peftlab init`: a first recipe for one's own file, with questions where there is someone to ask."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from peftlab.cli.errors import mistakes_in_a_line
from peftlab.errors import UserError, nearest
from peftlab.methods import METHODS
from peftlab.tasks import TASKS


def init(
    train: Annotated[Path | None, typer.Option(help="Your file: jsonl, json, csv, tsv, parquet, conll, txt.")] = None,
    task: Annotated[str | None, typer.Option(help="What its rows are; guessed if not given.")] = None,
    model: Annotated[str | None, typer.Option(help="A hub id or a folder.")] = None,
    method: Annotated[str | None, typer.Option(help="One that `peftlab list` shows.")] = None,
    columns: Annotated[
        list[str], typer.Option("--column", help="FIELD=COLUMN, where it cannot be guessed; may be repeated.")
    ] = [],  # noqa: B006
    name: Annotated[str | None, typer.Option(help="Of the run; made of method and file if not given.")] = None,
    output: Annotated[Path | None, typer.Option(help="The recipe to write; NAME.yaml if not given.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a recipe.")] = False,
) -> None:
    """Write a first recipe for your own file; asks for what is not given, if there is someone to ask."""
    with mistakes_in_a_line():
        from peftlab.cli import first_recipe

        path = Path(_asked(None if train is None else str(train), "train", "Your file"))
        rows = first_recipe.look(path)
        _known(task, TASKS, "task")
        given = dict(_assignment(column) for column in columns)
        if task is None and sys.stdin.isatty():
            found = first_recipe.fits(rows, given)
            kind = _asked(None, "task", f"Task ({', '.join(TASKS)})", found[0].kind if found else None)
            task = _known(kind, TASKS, "task")
        fit = first_recipe.choose(rows, given, task)
        base = _asked(model, "model", "Model, a hub id or a folder", TASKS[fit.kind].default_model)
        way = _asked(method, "method", f"Method ({', '.join(METHODS)})", "lora")
        _known(way, METHODS, "method")
        called = name or first_recipe.default_name(path, way)
        for line in first_recipe.write(
            fit,
            train=path,
            rows=len(rows),
            model=base,
            method=way,
            name=called,
            output=output or Path(f"{called}.yaml"),
            force=force,
        ):
            print(line)


def _asked(given: str | None, option: str, question: str, default: str | None = None) -> str:
    """What was given, or what a person at the terminal answers, or else the default."""
    if given is not None:
        return given
    if sys.stdin.isatty():
        try:
            return str(typer.prompt(question, default=default))
        except typer.Abort:  # the terminal's end of input
            raise UserError(f"init: no answer; --{option} gives one") from None
    if default is None:
        raise UserError(f"init: --{option} is missing")
    return default


def _known(kind: str | None, parts: Mapping[str, object], option: str) -> str | None:
    if kind is not None and kind not in parts:
        raise UserError(f"--{option} {kind}: unknown{nearest(kind, parts)}; known are {', '.join(parts)}")
    return kind


def _assignment(text: str) -> tuple[str, str]:
    field, equals, column = text.partition("=")
    if not (field and equals and column):
        raise UserError(f"--column {text}: FIELD=COLUMN was expected, e.g. labels=ner_tags")
    return field, column
