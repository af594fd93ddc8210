"""`peftlab explain`: the meaning of a key of a recipe or suite."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from peftlab.cli.command import command
from peftlab.component import Component
from peftlab.errors import UserError, nearest
from peftlab.recipe import Recipe
from peftlab.recipe.annotations import annotation_at, components_in
from peftlab.recipe.reference import ITEM, Entry, entries

WIDTH = 100


@command()
def explain(
    key: Annotated[
        str,
        typer.Argument(metavar="KEY", help="A key, e.g. training.warmup, method.rank or tasks.", show_default=False),
    ],
) -> None:
    """Explain a key: type, default, meaning and an example.

    Prints type, default, meaning and an example; for a section also its keys, for a component its kinds.
    """
    from peftlab.suites.suite import Suite

    recipe, suite = entries(Recipe), entries(Suite)
    matches = [entry for entry in recipe if _matches(key, entry)]
    matches += [entry for entry in suite if _matches(key, entry) and not _same_meaning(entry, matches)]
    section, _, kind = key.rpartition(".")
    component = components_in(annotation_at(Recipe, tuple(section.split(".")))).get(kind)
    if component is not None and not matches:
        for line in (key, *textwrap.indent(inspect.getdoc(component) or "", "  ").splitlines()):
            print(line)
        for line in _keys([entry for entry in recipe if entry.kind == kind and entry.key.startswith(f"{section}.")]):
            print(line)
        return
    if not matches:
        raise UserError(f"{key}: unknown key{_suggestion(key, [*recipe, *suite])}")
    for number, (entry, kinds) in enumerate(_merged(matches)):
        if number:
            print()
        for line in _lines(entry, kinds):
            print(line)
    below = [entry for entry in [*recipe, *suite] if _matches(key, entry, parent=True)]
    path = tuple(key.split("."))
    components = components_in(annotation_at(Recipe, path)) or components_in(annotation_at(Suite, path))
    for line in _components(components) if components else _keys(below):
        print(line)


def _matches(key: str, entry: Entry, *, parent: bool = False) -> bool:
    """True if `key` is the entry's, with its kind or any chosen name in the path: `method.lora.rank`, `tasks.ner.data`.

    `parent`: True if the entry is one level below `key`.
    """
    parts = entry.key.split(".")
    if parent:
        parts = parts[:-2] if ITEM in parts[-2:-1] and not key.endswith(f".{ITEM}") else parts[:-1]
    names = key.split(".")
    if entry.kind is not None and len(names) == len(entry.key.split(".")[:-1]) + (0 if parent else 1) + 1:
        position = len(entry.key.split(".")) - 1
        if names[position] != entry.kind:
            return False
        names = [*names[:position], *names[position + 1 :]]
    return len(parts) == len(names) and all(part in (name, ITEM) for part, name in zip(parts, names, strict=True))


def _same_meaning(entry: Entry, others: Sequence[Entry]) -> bool:
    return any((entry.kind, entry.meaning) == (other.kind, other.meaning) for other in others)


def _merged(matches: Sequence[Entry]) -> list[tuple[Entry, list[str]]]:
    """Entries that differ only in their kind become one with several kinds."""
    merged: dict[tuple[str, ...], tuple[Entry, list[str]]] = {}
    for entry in matches:
        _, kinds = merged.setdefault((entry.key, entry.type, entry.default, entry.meaning), (entry, []))
        if entry.kind is not None:
            kinds.append(entry.kind)
    return list(merged.values())


def _lines(entry: Entry, kinds: Sequence[str]) -> Iterator[str]:
    yield f"{entry.key} ({', '.join(kinds)})" if kinds else entry.key
    yield from textwrap.wrap(entry.meaning, WIDTH, initial_indent="  ", subsequent_indent="  ")
    for label, text in (("type", entry.type), ("default", entry.default), ("example", entry.example)):
        yield from textwrap.wrap(
            f"{label:<9}{text}", WIDTH, initial_indent="  ", subsequent_indent=" " * 11, break_on_hyphens=False
        )


def _components(components: dict[str, type[Component]]) -> Iterator[str]:
    yield ""
    yield "kinds"
    for kind, component in components.items():
        yield f"  {kind:<26}{(component.__doc__ or '').splitlines()[0]}"


def _keys(below: Sequence[Entry]) -> Iterator[str]:
    if below:
        yield ""
        yield "keys"
    for entry, _ in _merged(below):
        first, _, _ = entry.meaning.partition(". ")
        yield f"  {entry.key.rpartition('.')[2]:<26}{first}"


def _suggestion(key: str, known: Sequence[Entry]) -> str:
    """The keys that end in `key`, else the nearest one."""
    ends = [entry.key for entry in known if entry.key.rpartition(".")[2] == key.rpartition(".")[2]]
    if ends:
        return f" (did you mean {' or '.join(repr(end) for end in [*dict.fromkeys(ends)][:3])}?)"
    return nearest(key, [entry.key for entry in known])
