"""`peftlab overview`: a Markdown table of the results of recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftlab.cli.command import command
from peftlab.cli.options import RecipeFiles


@command()
def overview(
    recipes: RecipeFiles,
    results: Annotated[Path, typer.Option(help="Folder of their results.")] = Path("runs"),
    variants: Annotated[
        list[str],
        typer.Option(
            "--variant", metavar="'NAME KEY=VALUE'", help="Add a row for a recipe under an override; may be repeated."
        ),
    ] = [],  # noqa: B006
) -> None:
    """Print a Markdown table of the results of recipes."""
    from peftlab.reports.overview import overview as table

    print(table(recipes, results, variants), end="")
