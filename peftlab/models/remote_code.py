"""Code that a base model brings along. It runs only if the command line names the exact revision."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from peftlab.errors import UserError

FLAG = "--trust-remote-code"
MIN_DIGITS = 12
"""Fewest hexadecimal digits that name a revision."""
CONFIG_FILES = ("config.json", "tokenizer_config.json")
"""Files whose auto_map is used. That of a processor is not."""
_LOCAL_CLASS = re.compile(r"(?!.*--)([\w-]+/)*[\w-]+\.\w+")
"""Class in a file of the folder itself, e.g. `layers/modeling.MyModel`."""


def trusted_revision(folder: Path, source: str, revision: Callable[[], str], trust: str | None) -> str | None:
    """Revision of `folder` (the Hub's commit or a fingerprint of all files) if its code may run, else None.

    Raises UserError if the base model needs its code and `trust` does not name this revision, or if code would come
    from outside `folder`, e.g. from another repository, whose revision is not pinned.
    """
    classes = list(_classes(folder))
    if trust is None:
        if classes and _needs_code(folder):
            raise UserError(
                f"model: {source} contains custom code ({_files(classes)}), which would run on this machine with your "
                f"permissions; review it, then pass {FLAG} {revision()} to peftlab run, predict or merge"
            )
        return None
    if not classes:
        raise UserError(f"{FLAG}: {source} contains no custom code; remove the option")
    for file, auto_map in _auto_maps(folder):
        if isinstance(auto_map, list):  # transformers loads this old format but cannot save it
            raise UserError(f"{FLAG}: {source}: auto_map in {file} is a list; expected a mapping")
        if foreign := [name for name in _names(auto_map) if not _LOCAL_CLASS.fullmatch(name)]:
            raise UserError(
                f"{FLAG}: {source}: {file} loads {foreign[0]!r} from another repository or folder, whose revision is "
                "not pinned"
            )
    if links := [path for path in sorted(folder.rglob("*")) if path.is_symlink() and path.is_dir()]:
        raise UserError(f"{FLAG}: {links[0]}: is a link to a folder, whose revision is not pinned")
    actual = revision()
    if len(trust) < MIN_DIGITS or not actual.startswith(trust):
        raise UserError(f"{FLAG} {trust}: {source} is at another revision, {actual}")
    return actual


def install(folder: Path) -> None:
    """Copy the code to transformers' module cache and import it. One process must do so before the others.

    Raises UserError if the code cannot be imported.
    """
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    for name in _classes(folder):
        try:
            get_class_from_dynamic_module(name, folder)
        except Exception as error:  # third-party code may raise anything
            raise UserError(f"model: {folder}: its custom code has no usable {name}: {one_line(error)}") from None


def one_line(error: Exception) -> str:
    """Type and message of an error in one line of at most 200 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def is_complete(folder: Path) -> bool:
    """True if all code files that the configs name exist."""
    return all((folder / _file(name)).exists() for name in _classes(folder))


def _classes(folder: Path) -> Iterator[str]:
    """Classes in auto_map for transformers' auto classes, e.g. `modeling.MyModel`."""
    for file in CONFIG_FILES:
        yield from _names(_read(folder / file).get("auto_map"))


def _auto_maps(folder: Path) -> Iterator[tuple[str, Any]]:
    """File name and auto_map of every config that transformers may read, nested configs included."""
    for path in sorted(folder.glob("*config*.json")):
        pending: list[Any] = [_read(path)]
        while pending:
            values = pending.pop()
            if isinstance(values, dict):
                if "auto_map" in values:
                    yield path.name, values["auto_map"]
                pending += values.values()


def _names(auto_map: Any) -> Iterator[str]:
    entries = auto_map.values() if isinstance(auto_map, dict) else auto_map if isinstance(auto_map, list) else ()
    for names in entries:
        yield from (name for name in (names if isinstance(names, list) else [names]) if isinstance(name, str))


def _file(name: str) -> str:
    return f"{name.rpartition('.')[0]}.py"


def _needs_code(folder: Path) -> bool:
    """True if transformers does not implement the architecture."""
    from transformers import CONFIG_MAPPING

    return _read(folder / "config.json").get("model_type") not in CONFIG_MAPPING


def _read(file: Path) -> dict[str, Any]:
    """Content of a JSON file, or nothing if it is missing or invalid; the code that needs it reports the error."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _files(classes: list[str]) -> str:
    """Names of the files that define `classes`.

    >>> _files(["configuration.Mine", "modeling.Mine", "modeling.MineForSequenceClassification"])
    'configuration.py, modeling.py'
    """
    return ", ".join(sorted(set(map(_file, classes))))
