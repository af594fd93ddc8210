"""The folder of a recipe's run, also of one from before local data were named by their contents."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from peftlab.data import Data
from peftlab.errors import UserError
from peftlab.recipe import Recipe
from peftlab.results.result_file import FILE, is_finished, read_result, result_folder


def find_run(output: Path, recipe: Recipe) -> Path:
    """Folder of the recipe's run below `output`, whether it exists or not.

    With local data it is that of an earlier run of the same recipe if there is none by the digest, and if the earlier
    record names the data by paths, or the files no longer exist.
    """
    folder = result_folder(output, recipe.name, recipe.digest)
    if is_finished(folder) or not any(source.local for source in sources(recipe)):
        return folder
    named_by_paths = result_folder(output, recipe.name, recipe.path_digest)
    if is_finished(named_by_paths):
        return named_by_paths
    if any(source.missing_files() for source in sources(recipe)):
        for path in sorted((output / recipe.name).glob(f"*/{FILE}")):
            try:
                stored = Recipe.from_record(read_result(path).recipe)
            except (UserError, ValidationError):
                continue
            if stored.path_digest == recipe.path_digest:
                return path.parent
    return folder


def sources(recipe: Recipe) -> list[Data]:
    """The recipe's data sets: its own and those that are replayed."""
    return [recipe.data, *([recipe.replay.data] if recipe.replay is not None else [])]
