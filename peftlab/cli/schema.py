"""`peftlab schema`: the JSON schema of a recipe."""

from __future__ import annotations

import json

from peftlab.cli.command import command
from peftlab.recipe import recipe_schema


@command()
def schema() -> None:
    """Print the JSON schema of a recipe, for editors."""
    print(json.dumps(recipe_schema(), indent=2))
