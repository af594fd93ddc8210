"""Facts about architectures that methods ask for: stored answers of `peftlab.models.trace`, or a trace when needed."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftlab.models.fact_types import Facts, from_json

STORED = Path(__file__).with_suffix(".json")
"""Facts about the architectures of the installed transformers. Written by `python -m peftlab.models.store_facts`."""


@functools.cache
def stored() -> Mapping[str, Facts]:
    """Stored facts by architecture."""
    entries = json.loads(STORED.read_text(encoding="utf-8"))
    return {architecture: from_json(entry) for entry in entries for architecture in entry["architectures"]}


_learned: dict[str, Facts] = {}  # by architecture, in this process


def facts_of(architecture: str) -> Facts:
    """Facts about an architecture: the stored ones, or those of a trace. A failed trace is a fact with a reason."""
    return stored().get(architecture) or _learned.get(architecture) or _of_default_config(architecture)


def learn(values: Mapping[str, Any]) -> None:
    """Trace a config of these values if nothing is stored about its architecture: its defaults may build no model."""
    architecture = values.get("model_type")
    if isinstance(architecture, str) and architecture not in stored() and architecture not in _learned:
        _learned[architecture] = _trace(architecture, values)


@functools.cache
def _of_default_config(architecture: str) -> Facts:
    return _trace(architecture, {})


def _trace(architecture: str, values: Mapping[str, Any]) -> Facts:
    from peftlab.models.trace.architecture import trace  # late: imports transformers

    return trace(architecture, values)
