"""Facts about architectures that methods ask for: stored answers of `peftlab.models.trace`, or a trace when needed."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path

from peftlab.models.fact_types import Facts, from_json

STORED = Path(__file__).with_suffix(".json")
"""Facts about the architectures of the installed transformers. Written by `python -m peftlab.models.store_facts`."""


@functools.cache
def stored() -> Mapping[str, Facts]:
    """Stored facts by architecture."""
    entries = json.loads(STORED.read_text(encoding="utf-8"))
    return {architecture: from_json(entry) for entry in entries for architecture in entry["architectures"]}


@functools.cache
def facts_of(architecture: str) -> Facts:
    """Facts about an architecture: the stored ones, or those of a trace. A failed trace is a fact with a reason."""
    known = stored().get(architecture)
    if known is not None:
        return known
    from peftlab.models.trace.architecture import trace  # late: imports transformers

    return trace(architecture)
