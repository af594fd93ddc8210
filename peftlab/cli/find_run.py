"""The folder of a run, from what a user has at hand: it, a folder above it, or its recipe."""

from __future__ import annotations

from pathlib import Path

from peftlab.errors import UserError
from peftlab.methods import METHODS

CARD = "peftlab.json"
DEPTH = 3
"""Folders below the given one that are searched, e.g. runs/NAME/DIGEST."""
SHOWN = 3


def find_run(path: Path, output: Path = Path("runs")) -> Path:
    """The one tuned model at `path`, below it, or of the recipe at `path` below `output`. Raises UserError.

    Without a model, what later reads the folder names the fault.
    """
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return _of_recipe(path, output)
    if _is_tuned(path) or not path.is_dir():
        return path
    runs = _below(path)
    if len(runs) > 1:
        names = ", ".join(map(str, runs[-SHOWN:]))
        raise UserError(f"{path}: holds {len(runs)} runs; name one of them, e.g. the newest, the last of: {names}")
    return runs[0] if runs else path


def _of_recipe(path: Path, output: Path) -> Path:
    from peftlab.recipe import load_recipe
    from peftlab.results.result_file import result_folder

    recipe = load_recipe(path)
    folder = result_folder(output, recipe.name, recipe.digest)
    if _is_tuned(folder):
        return folder
    others = _below(output / recipe.name)
    hint = f"; another version of it was: {others[-1]}" if others else ""
    raise UserError(f"{path}: not trained yet (no {folder}): peftlab run {path}{hint}")


def _is_tuned(folder: Path) -> bool:
    places = (folder, *(folder / name for name in {method.folder for method in METHODS.values()}))
    return any((place / CARD).is_file() for place in places)


def _below(folder: Path) -> list[Path]:
    """Tuned models below a folder, the newest last. Folders of unfinished runs (`.part`) do not count."""
    found, level = [], [folder] if folder.is_dir() else []
    for _ in range(DEPTH):
        inner = [path for parent in level for path in parent.iterdir() if path.is_dir() and path.suffix != ".part"]
        found += [path for path in inner if _is_tuned(path)]
        level = [path for path in inner if path not in found and not path.name.startswith(".")]
    return sorted(found, key=lambda path: path.stat().st_mtime)
