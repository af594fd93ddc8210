"""What is wrong with a file that holds a pydantic model, a line a mistake: file, line, key, the nearest right word."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from peftlab.errors import UserError, nearest, printable
from peftlab.recipe.annotations import annotation_at, annotation_of, components_in, models_in
from peftlab.recipe.expected import expected
from peftlab.recipe.yaml_reader import Document, Key

WRONG_FORM = ("model_type", "model_attributes_type", "dict_type", "list_type")  # pydantic's words


def bad_input(
    error: ValidationError, model: type[BaseModel], path: Path, document: Document, overridden: Sequence[Key] = ()
) -> UserError:
    """What pydantic found wrong with the file of `path` that holds a `model`."""
    problems: dict[str, list[str]] = {}  # a key that may be this or that has a complaint from each
    keys = [_locate(d["loc"], document.values, missing=d["type"] == "missing")[0] for d in error.errors()]
    for key, details in zip(keys, error.errors(), strict=True):
        if any(len(other) > len(key) and other[: len(key)] == key for other in keys):
            continue  # it is one of the sorts that it may be, and what is wrong is inside
        place, complaint = _problem(path, model, document.values, document.lines, overridden, details)
        problems.setdefault(place, []).append(complaint)
    lines = (f"{place}: {', or '.join(dict.fromkeys(problems[place]))}" for place in problems)
    return UserError("\n".join(printable(line) for line in lines))


def _problem(
    path: Path,
    model: type[BaseModel],
    values: dict[str, Any],
    lines: Mapping[Key, int],
    overridden: Sequence[Key],
    details: ErrorDetails,
) -> tuple[str, str]:
    """Where and which key; what was wanted, what was found, the nearest right word."""
    key, found = _locate(details["loc"], values, missing=details["type"] == "missing")
    kind, context = details["type"], details.get("ctx", {})
    if kind == "union_tag_invalid" and isinstance(found, dict):
        key = (*key, "kind")
    where = f"{path}:{_line(key, lines)}"
    for override in overridden:
        if key[: len(override)] == override or override[: len(key)] == key:
            where = f"--set {'.'.join(map(str, override))}"
    place = f"{where}: {'.'.join(map(str, key)) or model.__name__.lower()}"
    if kind == "extra_forbidden":
        known = _keys_beside(model, key, values)
        if key[-1] in known:  # of two sorts of the same part
            return place, "does not go with the other keys beside it; give one sort's keys or the other's"
        return place, f"unknown key{nearest(str(key[-1]), known)}; known are {', '.join(known)}"
    if kind == "missing":
        return place, "missing"
    if kind == "union_tag_not_found":
        return place, f"needs a 'kind', one of {', '.join(components_in(annotation_at(model, key)))}"
    if kind == "union_tag_invalid":
        known = list(components_in(annotation_at(model, key[:-1] if isinstance(found, dict) else key)))
        return place, f"unknown kind {context['tag']!r}{nearest(context['tag'], known)}; known are {', '.join(known)}"
    if kind == "value_error":
        return place, str(context["error"])
    if kind in WRONG_FORM and details["loc"][-1:] == key[-1:]:  # else it is one of several complaints
        return place, f"{expected(model, key)} was expected, found {_short(found)}"
    message = details["msg"]
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        message += nearest(str(found.get("kind") if isinstance(found, dict) else found), known)
    return place, f"{message[0].lower()}{message[1:]}, found {_short(found)}"


def _locate(location: Sequence[str | int], values: dict[str, Any], *, missing: bool) -> tuple[Key, Any]:
    """The key in the file that pydantic's location means: without the names of union members, which are no keys."""
    key: list[str | int] = []
    inner: Any = values
    for position, part in enumerate(location):
        if part in inner if isinstance(inner, dict) else isinstance(inner, list) and part in range(len(inner)):
            inner = inner[part]
        elif missing and position + 1 == len(location):
            pass  # a key that is missing
        else:
            continue
        key.append(part)
    return tuple(key), inner


def _line(key: Key, lines: Mapping[Key, int]) -> int:
    while key and key not in lines:
        key = key[:-1]
    return lines.get(key, 1)


def _keys_beside(model: type[BaseModel], key: Key, values: dict[str, Any]) -> list[str]:
    """The keys that would be right where `key` is wrong."""
    annotation: Any = model
    inner: Any = values
    for part in key[:-1]:
        inner = inner[part]
        annotation = annotation_of(annotation, part)
        members = components_in(annotation)
        if members:
            kind = inner.get("kind") if isinstance(inner, dict) else None
            annotation = members.get(str(kind)) or annotation
    models = list(models_in(annotation)) or [model]
    return list(dict.fromkeys(name for found in models for name in found.model_fields))


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
