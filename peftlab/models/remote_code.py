"""Code that a base brings along: not run, unless the command line names the very revision that it is of."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from peftlab.errors import UserError

FLAG = "--trust-remote-code"
SHORTEST = 12  # hexadecimal digits that name a revision
USED = ("config.json", "tokenizer_config.json")  # of the files that name code: a processor's is nobody's here
_OWN = re.compile(r"(?!.*--)([\w-]+/)*[\w-]+\.\w+")  # `layers/modeling.MyModel`, in a file of the folder itself


def trusted_revision(folder: Path, source: str, revision: Callable[[], str], trust: str | None) -> str | None:
    """The `revision` of `folder`, the hub's commit or a fingerprint of all its files, if its code may run.

    Raises UserError if the base is nothing without its code and `trust` does not name this revision, and if the code is
    of another repository, of which nothing is pinned, or elsewhere than in `folder` itself.
    """
    classes = list(_classes(folder))
    if trust is None:
        if classes and _unknown(folder):
            raise UserError(
                f"model: {source} brings its own code ({_files(classes)}), which runs on this machine with all your "
                f"rights; read it, then give {FLAG} {revision()} to peftlab run, predict or merge"
            )
        return None
    if not classes:
        raise UserError(f"{FLAG}: {source} brings no code of its own; leave it out")
    for file, auto_map in _auto_maps(folder):
        if isinstance(auto_map, list):  # what transformers still loads, and cannot save
            raise UserError(f"{FLAG}: {source}: auto_map in {file} is a list; a mapping was expected")
        if foreign := [name for name in _names(auto_map) if not _OWN.fullmatch(name)]:
            raise UserError(
                f"{FLAG}: {source}: {file} takes {foreign[0]!r} from another repository or folder, of which no "
                "revision is pinned"
            )
    if links := [path for path in sorted(folder.rglob("*")) if path.is_symlink() and path.is_dir()]:
        raise UserError(f"{FLAG}: {links[0]}: is a link to a folder, of which no revision is pinned")
    found = revision()
    if len(trust) < SHORTEST or not found.startswith(trust):
        raise UserError(f"{FLAG} {trust}: {source} is at another revision, {found}")
    return found


def install(folder: Path) -> None:
    """Let transformers copy the code to where it imports from. Of several processes one must do it first.

    Raises UserError if it cannot be imported.
    """
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    for name in _classes(folder):
        try:
            get_class_from_dynamic_module(name, folder)
        except Exception as error:  # a stranger's code may raise anything
            raise UserError(f"model: {folder}: its own code has no usable {name}: {one_line(error)}") from None


def one_line(error: Exception) -> str:
    """Of a stranger's code, in a line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def is_complete(folder: Path) -> bool:
    """Whether the code that its files name is there."""
    return all((folder / _file(name)).exists() for name in _classes(folder))


def _classes(folder: Path) -> Iterator[str]:
    """`modeling.MyModel` and the like, as transformers' auto classes are told of them."""
    for file in USED:
        yield from _names(_read(folder / file).get("auto_map"))


def _auto_maps(folder: Path) -> Iterator[tuple[str, Any]]:
    """By file, of all that transformers may take one from: a config may name another file, and have others in it."""
    for path in sorted(folder.glob("*config*.json")):
        pending: list[Any] = [_read(path)]
        while pending:
            values = pending.pop()
            if isinstance(values, dict):
                if "auto_map" in values:
                    yield path.name, values["auto_map"]
                pending += values.values()


def _names(auto_map: Any) -> Iterator[str]:
    given = auto_map.values() if isinstance(auto_map, dict) else auto_map if isinstance(auto_map, list) else ()
    for names in given:
        yield from (name for name in (names if isinstance(names, list) else [names]) if isinstance(name, str))


def _file(name: str) -> str:
    return f"{name.rpartition('.')[0]}.py"


def _unknown(folder: Path) -> bool:
    """Whether transformers has no such architecture."""
    from transformers import CONFIG_MAPPING

    return _read(folder / "config.json").get("model_type") not in CONFIG_MAPPING


def _read(file: Path) -> dict[str, Any]:
    """What is wrong with a file, or with there being none, is said by whoever needs it."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _files(classes: list[str]) -> str:
    """
    >>> _files(["configuration.Mine", "modeling.Mine", "modeling.MineForSequenceClassification"])
    'configuration.py, modeling.py'
    """
    return ", ".join(sorted(set(map(_file, classes))))
