"""Values of a setting for some layers: by pattern of the layer's name, as PEFT matches it, or by layer number."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

from peftlab.errors import UserError

V = TypeVar("V")


def value_for(name: str, patterns: Mapping[str, V], default: V) -> V:
    """The value of the first pattern that matches the full name or its end after a dot.

    >>> value_for("layer.0.query", {"query|key": 8}, 4), value_for("layer.0.my_query", {"query": 8}, 4)
    (8, 4)
    """
    return next((value for pattern, value in patterns.items() if _matches(pattern, name)), default)


def require_matches(key: str, patterns: Collection[str], names: Sequence[str]) -> None:
    """Raise UserError if one of the patterns matches none of the adapted layers, or is shadowed by those before it."""
    rest = list(names)
    for pattern in patterns:
        try:
            matches = [name for name in rest if _matches(pattern, name)]
            shadowed = not matches and any(_matches(pattern, name) for name in names)
        except re.error as error:
            raise UserError(f"{key}: {pattern!r} is not a regular expression: {error}") from None
        if not matches:
            reason = "matches only layers that a pattern before it matches" if shadowed else "matches no adapted layer"
            ends = sorted({name.rpartition(".")[2] for name in names})
            raise UserError(f"{key}: {pattern!r} {reason}; their names end in {', '.join(ends[:12])}")
        rest = [name for name in rest if name not in matches]


def in_layers(names: Sequence[str], layers: Collection[int]) -> list[str]:
    """The names that belong to one of the numbered layers. Raises UserError for a number that no name has.

    >>> in_layers(["encoder.0.query", "encoder.1.query", "pooler"], [1])
    ['encoder.1.query']
    """
    numbers = {name: int(match[0]) for name in names if (match := re.search(r"(?<=\.)\d+(?=\.)", name))}
    existing = sorted(set(numbers.values()))
    for layer in layers:
        if layer not in existing:
            shown = f"{existing[0]} to {existing[-1]}" if existing else "no numbered layers"
            raise UserError(f"method.layers: {layer}, but the chosen layers are {shown}")
    return [name for name in names if numbers.get(name) in layers]


def _matches(pattern: str, name: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", name) is not None  # as in PEFT's get_pattern_key
