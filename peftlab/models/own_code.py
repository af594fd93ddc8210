"""Code that a base brings along: not run, unless the command line names the very revision that it is of."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from peftlab.part import BadInput

FLAG = "--trust-remote-code"
SHORTEST = 12  # hexadecimal digits that name a revision


def trusted(folder: Path, source: str, revision: Callable[[], str], trust: str | None) -> str | None:
    """The `revision` of `folder`, the hub's commit or a fingerprint of all its files, if its code may run.

    Raises BadInput if the base is nothing without its code and `trust` does not name this revision, and if the code is
    of another repository, of which nothing is pinned.
    """
    classes = list(_classes(folder))
    if trust is None:
        if classes and _unknown(folder):
            raise BadInput(
                f"model: {source} brings its own code ({_files(classes)}), which runs on this machine with all your "
                f"rights; read it, then give {FLAG} {revision()} to peftlab run, predict or merge"
            )
        return None
    if not classes:
        raise BadInput(f"{FLAG}: {source} brings no code of its own; leave it out")
    if foreign := [name for name in classes if "--" in name]:
        raise BadInput(f"{FLAG}: {source} takes {foreign[0]!r} from another repository, of which no revision is pinned")
    found = revision()
    if len(trust) < SHORTEST or not found.startswith(trust):
        raise BadInput(f"{FLAG} {trust}: {source} is at another revision, {found}")
    return found


def install(folder: Path) -> None:
    """Let transformers copy the code to where it imports from. Of several processes one must do it first."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    for name in _classes(folder):
        get_class_from_dynamic_module(name, folder)


def _classes(folder: Path) -> Iterator[str]:
    """`modeling.MyModel` and the like, as transformers' auto classes are told of them."""
    for file in ("config.json", "tokenizer_config.json"):
        given = _read(folder / file).get("auto_map")
        for names in given.values() if isinstance(given, dict) else ():
            yield from (name for name in (names if isinstance(names, list) else [names]) if isinstance(name, str))


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
    return ", ".join(sorted({f"{name.rpartition('.')[0]}.py" for name in classes}))
