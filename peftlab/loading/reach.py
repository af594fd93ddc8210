"""Measures what a method adapts and a quantization packs, and says it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from peftlab.loading.model import Base
from peftlab.methods import Method
from peftlab.methods.trunk import EXPERTS
from peftlab.recipe import Recipe
from peftlab.results.reach import FULL, Reach


def measure_reach(method: Method, base: Base, model: torch.nn.Module) -> Reach:
    """Reach of a method that is attached to `base`; `model` is what `apply_method` returned."""
    trunk, packed, places = base.trunk, base.packed, method.adapted_places(model)
    by_layers = method.acts_on == "layers"
    adapted = None if places is None or by_layers else trunk.fraction(places)
    return Reach(
        weights=trunk.size,
        adapted=adapted,
        not_adapted={} if places is None or adapted is None else trunk.rest(places),
        layers=trunk.layer_fraction(places or ()) if by_layers else None,
        packed=None if packed is None else trunk.fraction(packed),
        not_packed={} if packed is None else trunk.rest(packed),
    )


def reach_lines(recipe: Recipe, base: Base, reach: Reach) -> Iterator[str]:
    """Sentences for the user: the reach, with a warning and a remedy where it is not full."""
    method = recipe.method
    yield reach.of_method(method.title, method.acts_on, by_choice=method.partial_by_choice)
    if reach.adapted is not None and reach.adapted < FULL and EXPERTS in reach.not_adapted:
        yield method.remedy_for_experts([base.trunk.shapes[name] for name in base.trunk.experts])
    if (sentence := reach.of_quantization(recipe.quantization.title)) is not None:
        yield sentence
    if (remark := method.remark(base.model)) is not None:
        yield remark
