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

from peftlab.errors import UserError, printable
from peftlab.recipe.annotations import annotation_at, annotation_of, components_in, models_in
from peftlab.recipe.expected import expected
from peftlab.recipe.synonyms import is_typo, key_hint, kind_hint, value_hint
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
        if item.type == "missing" and any(_is_unknown_sibling(other, item) for other in located):
            continue  # the unknown key is the other name of the missing one, or decided which keys are required
        place = f"{_source(item, path, document.lines, overridden)}: {_name(item)}"
        messages.setdefault(place, []).append(_message(item))
    lines = (f"{place}: {', or '.join(dict.fromkeys(messages[place]))}" for place in messages)
    return UserError("\n".join(printable(line) for line in lines))


def _is_unknown_sibling(error: _Error, missing: _Error) -> bool:
    """True if the error is an unknown key in the mapping in which the other one is missing."""
    return error.type == "extra_forbidden" and error.key[:-1] == missing.key[:-1]


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
            return _missing_kind(error)
        case "union_tag_invalid":
            return _unknown_kind(error, context["tag"])
        case "value_error":
            return str(context["error"])
    if error.type in WRONG_TYPE and error.details["loc"][-1:] == error.key[-1:]:  # else one of several messages
        hint = value_hint(_name(error), error.value)
        if isinstance(error.value, list) and len(error.value) == 1:
            hint = f" (without the brackets: {error.value[0]})"
        return f"{expected(error.model, error.key)} was expected, found {_short(error.value)}{hint}"
    message = error.details["msg"]
    if error.type == "literal_error":
        word = str(error.value.get("kind") if isinstance(error.value, dict) else error.value)
        options = re.findall(r"'([^']*)'", context["expected"])
        message += kind_hint(word, options) or _typo_hint(word, options)
    hint = value_hint(_name(error), error.value)
    if error.type in ("list_type", "tuple_type") and isinstance(error.value, str):
        hint = f" (a list: [{error.value}])"
    if error.type == "string_pattern_mismatch" and (link := re.search(r"://[^/]+/(.+)", str(error.value))):
        hint = f" (the id only: {link[1].removeprefix('datasets/')})"
    found = f"found {_short(error.value)}{hint}"
    return f"{message[0].lower()}{message[1:]}, {found}"


def _unknown_key(error: _Error) -> str:
    name = str(error.key[-1])
    valid = _sibling_keys(error.model, error.key, error.values)
    if name in valid:  # a key of another kind of the same component
        return "does not belong with the other keys; use the keys of one kind"
    hint = key_hint(name, _name(error).rpartition(".")[0]) or _typo_hint(name, valid) or _place_hint(error, name)
    return f"unknown key{hint}; known are {', '.join(valid)}"


def _place_hint(error: _Error, name: str) -> str:
    """` (...)` for a key that belongs to another kind of this component, or to another section; else ""."""
    if len(error.key) > 1:
        components = components_in(annotation_at(error.model, error.key[:-1]))
        kinds = [kind for kind, component in components.items() if name in component.model_fields]
        if kinds:
            return f" (a key of {', '.join(kinds)})"
    fields = error.model.model_fields
    places = [
        f"{section}.{name}"
        for section, field in fields.items()
        if any(name in model.model_fields for model in models_in(field.annotation))
    ]
    if name in fields:
        places.append(f"{name}, a key of the file itself")
    return f" (use {' or '.join(places)})" if places and name != "kind" else ""


def _missing_kind(error: _Error) -> str:
    """Message for a mapping without a kind: the kinds that have its keys, or what its keys mean elsewhere."""
    components = components_in(annotation_at(error.model, error.key))
    names = list(error.value) if isinstance(error.value, dict) else []
    matching = [kind for kind, part in components.items() if names and set(names) <= part.model_fields.keys()]
    hint = next(filter(None, map(key_hint, map(str, names))), "")
    return f"needs a 'kind'{hint}, one of {', '.join(matching or components)}"


def _typo_hint(word: str, options: Sequence[str]) -> str:
    """` (did you mean 'x'?)` for the option that `word` misspells, else ""."""
    close = [option for option in options if is_typo(word, option)]
    return f" (did you mean {close[0]!r}?)" if close else ""


def _unknown_kind(error: _Error, kind: str) -> str:
    kinds = list(components_in(annotation_at(error.model, error.key)))
    return f"unknown kind {kind!r}{kind_hint(kind, kinds) or _typo_hint(kind, kinds)}; known are {', '.join(kinds)}"


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
