"""Error lines for a file that a pydantic model refuses: file, line, key, and the nearest valid word."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from peftlab.errors import UserError, nearest, printable
from peftlab.recipe.annotations import annotation_at, annotation_of, components_in, models_in
from peftlab.recipe.expected import expected
from peftlab.recipe.synonyms import key_hint, kind_hint
from peftlab.recipe.yaml_reader import Document, Key

WRONG_TYPE = ("model_type", "model_attributes_type", "dict_type", "list_type")
"""pydantic's error types for a value that is not even the right container."""


@dataclass(frozen=True)
class _Error:
    """One of pydantic's errors, located in the file."""

    model: type[BaseModel]
    values: dict[str, Any]
    details: ErrorDetails
    key: Key
    value: Any

    @property
    def type(self) -> str:
        return self.details["type"]


def file_errors(
    error: ValidationError, model: type[BaseModel], path: Path, document: Document, overridden: Sequence[Key] = ()
) -> UserError:
    """The UserError for a file that `model` refuses, one line per key. `overridden` are keys set by --set."""
    located = [_located(model, document.values, details) for details in error.errors()]
    messages: dict[str, list[str]] = {}  # a key with several accepted types has one message for each
    for item in located:
        if any(len(other.key) > len(item.key) and other.key[: len(item.key)] == item.key for other in located):
            continue  # the value has an accepted type, and the error is inside it
        place = f"{_source(item, path, document.lines, overridden)}: {_name(item)}"
        messages.setdefault(place, []).append(_message(item))
    lines = (f"{place}: {', or '.join(dict.fromkeys(messages[place]))}" for place in messages)
    return UserError("\n".join(printable(line) for line in lines))


def _located(model: type[BaseModel], values: dict[str, Any], details: ErrorDetails) -> _Error:
    """The key of the file at pydantic's location, which also names members of unions."""
    key: list[str | int] = []
    value: Any = values
    for position, name in enumerate(details["loc"]):
        if name in value if isinstance(value, dict) else isinstance(value, list) and name in range(len(value)):
            value = value[name]
        elif not (details["type"] == "missing" and position + 1 == len(details["loc"])):
            continue
        key.append(name)
    return _Error(model, values, details, tuple(key), value)


def _names_kind(error: _Error) -> bool:
    """True if the error is about the `kind` in a mapping."""
    return error.type == "union_tag_invalid" and isinstance(error.value, dict)


def _name(error: _Error) -> str:
    key = (*error.key, "kind") if _names_kind(error) else error.key
    return ".".join(map(str, key)) or error.model.__name__.lower()


def _source(error: _Error, path: Path, lines: Mapping[Key, int], overridden: Sequence[Key]) -> str:
    """`file:line`, or the --set that the value came from."""
    key = (*error.key, "kind") if _names_kind(error) else error.key
    overrides = [o for o in overridden if key[: len(o)] == o or o[: len(key)] == key]
    if overrides:
        return f"--set {'.'.join(map(str, overrides[-1]))}"
    while key and key not in lines:
        key = key[:-1]
    return f"{path}:{lines.get(key, 1)}"


def _message(error: _Error) -> str:
    """Message: what is wrong, what was expected, and the nearest valid word."""
    context = error.details.get("ctx", {})
    match error.type:
        case "extra_forbidden":
            return _unknown_key(error)
        case "missing":
            return "missing"
        case "union_tag_not_found":
            return f"needs a 'kind', one of {', '.join(components_in(annotation_at(error.model, error.key)))}"
        case "union_tag_invalid":
            return _unknown_kind(error, context["tag"])
        case "value_error":
            return str(context["error"])
    if error.type in WRONG_TYPE and error.details["loc"][-1:] == error.key[-1:]:  # else one of several messages
        return f"{expected(error.model, error.key)} was expected, found {_short(error.value)}"
    message = error.details["msg"]
    if error.type == "literal_error":
        word = str(error.value.get("kind") if isinstance(error.value, dict) else error.value)
        options = re.findall(r"'([^']*)'", context["expected"])
        message += kind_hint(word, options) or nearest(word, options)
    return f"{message[0].lower()}{message[1:]}, found {_short(error.value)}"


def _unknown_key(error: _Error) -> str:
    name = str(error.key[-1])
    valid = _sibling_keys(error.model, error.key, error.values)
    if name in valid:  # a key of another kind of the same component
        return "does not belong with the other keys; use the keys of one kind"
    return f"unknown key{key_hint(name) or nearest(name, valid)}; known are {', '.join(valid)}"


def _unknown_kind(error: _Error, kind: str) -> str:
    kinds = list(components_in(annotation_at(error.model, error.key)))
    return f"unknown kind {kind!r}{kind_hint(kind, kinds) or nearest(kind, kinds)}; known are {', '.join(kinds)}"


def _sibling_keys(model: type[BaseModel], key: Key, values: dict[str, Any]) -> list[str]:
    """The valid keys of the mapping that contains `key`."""
    annotation: Any = model
    inner: Any = values
    for name in key[:-1]:
        inner = inner[name]
        annotation = annotation_of(annotation, name)
        components = components_in(annotation)
        if components:
            kind = inner.get("kind") if isinstance(inner, dict) else None
            annotation = components.get(str(kind)) or annotation
    models = list(models_in(annotation)) or [model]
    return list(dict.fromkeys(name for candidate in models for name in candidate.model_fields))


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
