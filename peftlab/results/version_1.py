"""result.json version 1: the names that version 2 renamed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED: Mapping[str, str] = {
    "floor": "constant_baseline",
    "untouched": "base_model",
    "method_figures": "method_stats",
    "micro_batch_halvings": "micro_batch_reductions",
    "parameters.share": "parameters.trainable_fraction",
    "cost.padding_share": "cost.padding_fraction",
}


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """Values of a version 1 file under the names of version 2.

    >>> upgraded({"version": 1, "floor": {}, "cost": {"padding_share": 0.1}})
    {'version': 2, 'constant_baseline': {}, 'cost': {'padding_fraction': 0.1}}
    """
    return {"version": 2, **{key: value for key, value in _renamed(values, "").items() if key != "version"}}


def _renamed(values: Mapping[str, Any], parent: str) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{parent}{key}"
        inner = any(name.startswith(f"{path}.") for name in RENAMED) and isinstance(value, Mapping)
        renamed[RENAMED.get(path, path).rpartition(".")[2]] = _renamed(value, f"{path}.") if inner else value
    return renamed
