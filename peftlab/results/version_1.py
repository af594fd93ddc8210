"""Files of version 1: reading them under the names of version 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Names of result.json; other files have theirs next to their models.
RENAMED: Mapping[str, str] = {
    "floor": "constant_baseline",
    "untouched": "base_model",
    "method_figures": "method_stats",
    "micro_batch_halvings": "micro_batch_reductions",
    "parameters.share": "parameters.trainable_fraction",
    "cost.padding_share": "cost.padding_fraction",
}


def upgraded(values: Mapping[str, Any], names: Mapping[str, str] = RENAMED) -> dict[str, Any]:
    """Values of a version 1 file under the names of version 2.

    `names` has the new name of each renamed key; keys of inner mappings have dotted paths.

    >>> upgraded({"version": 1, "floor": {}, "cost": {"padding_share": 0.1}})
    {'version': 2, 'constant_baseline': {}, 'cost': {'padding_fraction': 0.1}}
    """
    return {"version": 2, **{key: value for key, value in _renamed(values, names, "").items() if key != "version"}}


def _renamed(values: Mapping[str, Any], names: Mapping[str, str], parent: str) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{parent}{key}"
        inner = any(name.startswith(f"{path}.") for name in names) and isinstance(value, Mapping)
        name = names.get(path, path).rpartition(".")[2]
        renamed[name] = _renamed(value, names, f"{path}.") if inner else value
    return renamed
