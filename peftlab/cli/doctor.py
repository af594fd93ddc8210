"""`peftlab doctor`: check a recipe, or every combination, on a tiny model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from peftlab.cli.command import command
from peftlab.cli.options import Overrides
from peftlab.errors import UserError
from peftlab.recipe import load_recipe


@command()
def doctor(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="A recipe.", show_default=False)] = None,
    overrides: Overrides = [],  # noqa: B006
    matrix: Annotated[
        bool,
        typer.Option("--matrix", help="Instead, try all architectures and write docs/compatibility.md."),
    ] = False,
    shard: Annotated[str, typer.Option(metavar="K/N", help="Part of the architectures that --matrix tries.")] = "1/1",
) -> None:
    """Check in seconds that a recipe trains, reloads and merges.

    It runs on a tiny model of the recipe's architecture with random weights. Exit code 1 if a check fails.
    """
    if (recipe is None) != matrix or (matrix and overrides):
        raise UserError("doctor: give a recipe, or --matrix alone")
    failed = _write_matrix(shard) if recipe is None else _check(recipe, overrides)
    raise SystemExit(1 if failed else 0)


def _check(path: Path, overrides: list[str]) -> int:
    """Print every check of a recipe; return the number of those that failed."""
    recipe = load_recipe(path, overrides)
    from peftlab.doctor.diagnosis import examine
    from peftlab.runs.console import show_check

    failed = 0
    for check in examine(recipe):
        show_check(check.name, check.ok, check.detail, check.cure)
        failed += check.ok is False
    return failed


def _write_matrix(shard: str) -> int:
    """Try what has not been tried, write docs/compatibility.md; return the number of combinations that failed."""
    from peftlab.doctor import compatibility
    from peftlab.doctor.walk import judged

    match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", shard)
    if match is None or int(match[1]) > int(match[2]):
        raise UserError(f"--shard: {shard!r}: expected K/N with K from 1 to N, e.g. 1/2")
    outcomes = compatibility.try_all(store=compatibility.store_file(), shard=(int(match[1]), int(match[2])))
    compatibility.FILE.parent.mkdir(exist_ok=True)
    compatibility.FILE.write_text(compatibility.document(outcomes), encoding="utf-8")
    failed = sum(judged(outcome).kind == "fails" for outcome in outcomes)
    print(f"{compatibility.FILE}: {len(outcomes)} combinations, {failed} fail")
    return failed
