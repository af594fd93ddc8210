"""A recipe from its YAML file, with overrides from the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from peftlab.errors import UserError, nearest, printable
from peftlab.models.facts import learn
from peftlab.recipe.errors import file_errors
from peftlab.recipe.paths import resolve_data_paths
from peftlab.recipe.recipe import NAME, Recipe
from peftlab.recipe.yaml_reader import Document, Key, read_scalar, read_yaml


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe. `overrides` are `key.subkey=value`. Raises UserError with one line per error."""
    try:
        exists = path.exists()
    except OSError as error:  # e.g. a name of thousands of characters
        raise UserError(f"{str(path)[:60]}: no such recipe: {error.strerror}") from None
    if not exists:
        raise UserError(_no_such_file(path))
    if path.is_dir():
        raise UserError(f"{path}: a folder; give one of the recipes in it, e.g. {_first_recipe(path)}")
    document = read_yaml(path)
    values, lines = resolve_data_paths(document.values, path.parent), dict(document.lines)
    if "name" not in values and not re.fullmatch(NAME, path.stem):
        raise UserError(f"{path}:1: name: missing, and the file's own, {path.stem!r}, does not match {NAME}")
    values.setdefault("name", path.stem)
    overridden = [_override(values, override) for override in overrides]
    _keep_unscored_rows(values)
    try:
        recipe = Recipe.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise file_errors(error, Recipe, path, Document(values, lines), overridden) from None
    config = recipe.model.known_config()
    if config is not None:
        learn(config.values)
    reason = recipe.incompatible_with(recipe.model.known_architecture())
    if reason is not None:
        raise UserError(f"{path}:{lines.get(('method',), 1)}: method: {reason}")
    return recipe


def _keep_unscored_rows(values: dict[str, Any]) -> None:
    """Take no test split from train where it would not be scored. In the file only: trials of a suite keep theirs."""
    data = values.get("data")
    if values.get("score_test") is not False:
        return
    parts = data.get("parts") if isinstance(data, dict) else None
    for section in [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else [values]:
        data = section.get("data")
        if isinstance(data, (str, dict)):
            section["data"] = {"test_share": 0, **({"id": data} if isinstance(data, str) else data)}


def _no_such_file(path: Path) -> str:
    others = [other.stem for other in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    return f"{path}: no such recipe{nearest(path.stem, others) or '; peftlab init --train FILE writes one'}"


def _first_recipe(folder: Path) -> Path:
    return min(folder.glob("*.yaml"), default=folder / "RECIPE.yaml")


def _override(values: dict[str, Any], override: str) -> Key:
    """Apply `a.b=value` to `values` and return its key."""
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise UserError(f"--set {printable(override)}: key=value was expected, e.g. method.rank=8")
    *parents, last = name.split(".")
    inner = values
    for parent in parents:
        section = inner.get(parent)
        if isinstance(section, str):  # the short form of a component, `method: lora`
            section = {"id" if parent in ("model", "data") else "kind": section}
        elif section is None:
            section = {}
        elif not isinstance(section, dict):
            raise UserError(f"--set {printable(override)}: {parent!r} is {section!r}, which has no keys")
        inner[parent] = inner = section
    if last == "kind":
        inner.clear()  # another component, with keys of its own
    try:
        inner[last] = read_scalar(text)
    except ValueError as error:
        raise UserError(f"--set {printable(override)}: {error}") from None
    return (*parents, last)
