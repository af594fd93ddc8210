"""`peftlab profile`: measure a training step of a recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from peftlab.cli.command import command
from peftlab.cli.options import Examples, Length, Overrides, RecipeFile
from peftlab.recipe import load_recipe


@command()
def profile(
    recipe: RecipeFile,
    overrides: Overrides = [],  # noqa: B006
    examples: Examples = None,
    length: Length = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the profile as JSON.")] = False,
) -> None:
    """Measure memory, FLOPs and time of a recipe's training step."""
    loaded = load_recipe(recipe, overrides)
    from peftlab.profiling.measure import measure
    from peftlab.profiling.summary import profile_lines

    measured = measure(loaded, examples=examples, length=length)
    if as_json:
        print(measured.model_dump_json(indent=2))
        return
    for label, text in profile_lines(measured):
        print(f"{label:<14}{text}")
