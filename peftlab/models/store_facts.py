"""Writer of the stored facts: `python -m peftlab.models.store_facts [ARCHITECTURE...]` traces these, or all."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable

import transformers

from peftlab.io.atomic import atomic_write
from peftlab.models.fact_types import Facts, to_json
from peftlab.models.facts import STORED, stored
from peftlab.models.text_branch import MULTIMODAL
from peftlab.models.trace.architecture import AUTO_CLASSES, trace
from peftlab.models.trace.kept import KEPT


def main(architectures: Iterable[str]) -> None:
    """Trace and store; facts about other architectures stay as they are."""
    facts = dict(stored()) if STORED.exists() else {}
    for architecture in architectures:
        traced = trace(architecture)
        if "model" in traced.unknown:  # left to a later trace
            facts.pop(architecture, None)
            print(architecture, traced.unknown["model"], flush=True)
            continue
        facts[architecture] = traced if architecture not in KEPT else KEPT[architecture](traced)
        print(
            architecture, ", ".join(f"{key}: {value}" for key, value in traced.unknown.items()) or "traced", flush=True
        )
        atomic_write(STORED, _lines(facts).encode())


def text_architectures() -> list[str]:
    """Architectures with a model of at least one task, by name."""
    autos = [*AUTO_CLASSES.values(), *MULTIMODAL]
    names = {config.model_type for auto in autos for config in getattr(transformers, auto)._model_mapping}
    return sorted(names)


def _lines(facts: dict[str, Facts]) -> str:
    """JSON with one line for each distinct answer."""
    groups: dict[str, list[str]] = {}
    for architecture in sorted(facts):
        groups.setdefault(json.dumps(to_json(facts[architecture])), []).append(architecture)
    lines = [json.dumps({"architectures": names, **json.loads(entry)}) for entry, names in groups.items()]
    return "[\n" + ",\n".join(lines) + "\n]\n"


if __name__ == "__main__":
    main(sys.argv[1:] or text_architectures())
