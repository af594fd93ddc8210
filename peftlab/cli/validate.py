"""`peftlab validate`: check recipes."""

from __future__ import annotations

import sys
from pathlib import Path

from peftlab.cli.command import command
from peftlab.cli.options import Overrides, RecipeFiles
from peftlab.errors import UserError
from peftlab.io.redact import redact
from peftlab.recipe import Recipe, load_recipe
from peftlab.recipe.yaml_reader import read_yaml


@command()
def validate(
    recipes: RecipeFiles,
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Check recipes without loading weights or data."""
    invalid = 0
    for path in recipes:
        try:
            recipe = load_recipe(path, overrides)
            _check_base(recipe, path)
            _check_init_from(recipe, path)
        except UserError as error:
            invalid += 1
            print(redact(str(error)), file=sys.stderr)
        else:
            print(f"{path}: valid ({recipe.method.kind}, {recipe.quantization.kind}, {recipe.digest})")
    raise SystemExit(2 if invalid else 0)


def _check_base(recipe: Recipe, path: Path) -> None:
    """Raise UserError if the base cannot be loaded as the recipe says, as far as that is known without its weights."""
    recipe.quantization.require_library()
    config = recipe.model.known_config()
    if config is None:
        return
    from peftlab.loading import head, stored_quantization

    reason = stored_quantization.incompatible_with(config.values, recipe.quantization)
    if reason is not None:
        raise UserError(f"{path}:{read_yaml(path).lines.get(('model',), 1)}: model: {config.source}: {reason}")
    if recipe.task.new_head:
        return

    try:
        head.check(config, recipe.task)
    except UserError as error:
        raise UserError(f"{path}:{read_yaml(path).lines.get(('task',), 1)}: {error}") from None


def _check_init_from(recipe: Recipe, path: Path) -> None:
    """Raise UserError if the recipe cannot start from the adapter that `init_from` names."""
    if recipe.init_from is None:
        return
    from peftlab.runs import initial_adapter

    try:
        initial_adapter.check(recipe)
    except UserError as error:
        raise UserError(f"{path}:{read_yaml(path).lines.get(('init_from',), 1)}: {error}") from None
