"""Digest of a recipe: a hash of everything that shapes the result, stable while peftlab changes.

A record of a run stores its recipe, and the digest names the run. Both must mean the same to every later version:

* A key that is null where the code chooses a value (`training.learning_rate`: the method's own) means the value that
  result.json version 1 gave it, frozen in `version_1_defaults`. If the code's default changes, a recipe without the
  key is recorded with the new value, so its digest changes; a stored record keeps its value and its digest.
* A key that was added after a record was written is left out of the digest while it has the value that means what the
  code did before (`Settings.added_fields`), and a record without the key is read with that value.

The user's own files are named by their contents (`data.fingerprints`), so that the digest does not move with a folder.
Records without fingerprints, from before there were any, and recipes whose files do not exist are named by the paths.

Null that names a rule (`training.evaluate_every`: at the end of each epoch) is a value like any other: to change the
rule, add a value.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel

from peftlab.component import Settings
from peftlab.recipe.annotations import model_for

DefaultKey = tuple[str, str]
"""A key of a recipe's section, e.g. `("training", "learning_rate")`."""

DESCRIPTIVE: dict[str, Any] = {
    "name": True,
    "description": True,
    "model": {"architecture"},
    "training": {"auto_micro_batch"},
}
"""Keys that shape no result."""

VERSION_1_LEARNING_RATES: Mapping[str, float] = {
    "adalora": 1e-3,
    "adapter": 3e-4,
    "bitfit": 1e-3,
    "full": 5e-5,
    "head": 1e-3,
    "ia3": 5e-3,
    "lora": 5e-4,
    "p_tuning": 1e-3,
    "peft": 1e-3,
    "prefix_tuning": 5e-3,
    "prompt_tuning": 3e-2,
}
"""By kind of method. Never edited; a method that is not listed is recorded with its learning rate written out."""

VERSION_1_SELECTION: Mapping[str, str] = {"single_label": "accuracy", "multi_label": "micro_f1", "regression": "r2"}
"""By problem of sequence classification. Never edited."""

EARLY_RECORDS: Mapping[str, Any] = {
    "replay": None,
    "data": {"numbers": [], "group": None, "stratify": None, "on_bad_row": "error", "drop_leaks": False},
    "task": {"label_smoothing": 0.0, "class_weights": None, "scheme": "iob2"},
    "training": {"auto_micro_batch": False, "layer_decay": None, "adversarial": None, "embedding_noise": None},
}
"""Keys that the earliest records of version 1 lack, at the values they had. Never edited."""


def version_1_default(key: DefaultKey, values: Mapping[str, Any]) -> Any:
    """The value that null at `key` means in every record; None if records never leave it null.

    >>> version_1_default(("training", "learning_rate"), {"method": {"kind": "lora"}})
    0.0005
    """
    if key == ("training", "learning_rate"):
        return VERSION_1_LEARNING_RATES.get(values["method"]["kind"])
    if key == ("task", "select_by"):
        return VERSION_1_SELECTION.get(values["task"].get("problem"))
    return {("training", "epochs"): 3.0, ("training", "batch_tokens"): 1024}.get(key)


def with_null_defaults(
    values: dict[str, Any], defaults: Mapping[DefaultKey, Any], from_record: Collection[DefaultKey]
) -> dict[str, Any]:
    """A recipe's values as records store them: null only where the value is the one of version 1.

    `defaults` are the values that the code chooses today for keys that are null; `from_record` the keys that were null
    in the record that the recipe was read from.
    """
    recorded = {section: dict(keys) if isinstance(keys, dict) else keys for section, keys in values.items()}
    for (section, name), default in defaults.items():
        value, version_1 = recorded[section][name], version_1_default((section, name), values)
        if value is None and default != version_1:
            recorded[section][name] = default
        elif (section, name) in from_record and value == version_1:
            recorded[section][name] = None
    return recorded


def changed_defaults(values: Mapping[str, Any], defaults: Mapping[DefaultKey, Any]) -> dict[DefaultKey, Any]:
    """The version 1 values of keys that are null in a record and for which the code chooses another value today."""
    changed = {
        (section, name): version_1_default((section, name), values)
        for section, name in defaults
        if values[section][name] is None
    }
    return {key: value for key, value in changed.items() if value is not None and value != defaults[key]}


def completed(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's record with the keys that were added since it was written, at the values that change nothing."""
    early: dict[str, Any] = dict(values)
    for section, keys in EARLY_RECORDS.items():
        if not isinstance(keys, dict):
            early.setdefault(section, keys)
        elif isinstance(early.get(section), dict):
            fields = _fields(_section_model(model, section, early[section]))
            early[section] = {**{key: keys[key] for key in keys if key in fields}, **early[section]}
    return _with_added_fields(model, early)


def _with_added_fields(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    filled = {**_added_fields(model), **values}
    for name, value in filled.items():
        inner = _section_model(model, name, value)
        if inner is not None:
            filled[name] = _with_added_fields(inner, value)
    return filled


def _added_fields(model: type[BaseModel]) -> dict[str, Any]:
    """`added_fields` of a model and its base classes."""
    return {name: value for base in model.__mro__ for name, value in vars(base).get("added_fields", {}).items()}


def _section_model(model: type[BaseModel], name: str, values: object) -> type[BaseModel] | None:
    field = model.model_fields.get(name)
    return None if field is None or not isinstance(values, dict) else model_for(field.annotation, values)


def _fields(model: type[BaseModel] | None) -> Collection[str]:
    return () if model is None else model.model_fields


def digest(recipe: Settings, recorded: Mapping[str, Any]) -> str:
    """The first 12 hexadecimal digits of the sha256 of what `recorded`, the recipe's record, says of the result."""
    canonical = json.dumps(_shaping(recipe, recorded, DESCRIPTIVE), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _shaping(model: Settings, values: Mapping[str, Any], excluded: Any) -> dict[str, Any]:
    """Values without descriptive keys, and without added keys that change nothing."""
    added = _added_fields(type(model))
    shaping: dict[str, Any] = {}
    by_content = model.named_by_content if values.get("fingerprints") else ()
    for name, value in values.items():
        inner = excluded.get(name, ()) if isinstance(excluded, Mapping) else (name in excluded)
        if inner is True or name in by_content or (name in added and value == added[name]):
            continue
        section = getattr(model, name)
        if isinstance(section, Settings):
            shaping[name] = _shaping(section, value, inner or ())
        elif isinstance(section, tuple) and all(isinstance(item, Settings) for item in section) and section:
            shaping[name] = [_shaping(item, part, ()) for item, part in zip(section, value, strict=True)]
        else:
            shaping[name] = value
    return shaping
