"""The trunk: the matrix weights of a base model outside of embeddings, output embedding and head."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from peftlab.methods.experts import stacked_experts

if TYPE_CHECKING:
    from torch import nn

EXPERTS = "experts stacked in 3-D parameters"
"""Name of this group of weights."""


@dataclass(frozen=True)
class Trunk:
    """Names and shapes of the trunk's weights. A method's reach is a fraction of their number of elements."""

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shape of each weight with at least two dimensions, without quantization, by full name."""
    experts: Collection[str] = ()
    """Full names of the stacked experts."""
    layers: Collection[str] = ()
    """Full names of the transformer layers."""

    @property
    def size(self) -> int:
        return sum(map(prod, self.shapes.values()))

    def fraction(self, places: Iterable[str]) -> float | None:
        """Fraction of the weights that are, or are in, these modules and parameters; None without weights."""
        inside = _Inside(places)
        return _ratio(sum(prod(shape) for name, shape in self.shapes.items() if name in inside), self.size)

    def layer_fraction(self, places: Collection[str]) -> float | None:
        """Fraction of the layers that contain one of these modules; None without layers."""
        reached = [layer for layer in self.layers if _holds(layer, places)]
        return _ratio(len(reached), len(self.layers))

    def rest(self, places: Collection[str]) -> dict[str, float]:
        """Fractions of the weights outside of `places`, by group, largest first."""
        inside = _Inside(places)
        separate = [name for name in self.shapes if name in inside or name in self.experts]
        kept = {branch for name in separate for branch in _branches(name)}
        groups: dict[str, int] = {}
        for name, shape in self.shapes.items():
            if name not in inside:
                group = EXPERTS if name in self.experts else _branch(name, kept)
                groups[group] = groups.get(group, 0) + prod(shape)
        return {group: size / self.size for group, size in sorted(groups.items(), key=lambda item: -item[1])}


class _Inside:
    """Set of names that equal a place or lie below it."""

    def __init__(self, places: Iterable[str]) -> None:
        self.places = {*places}

    def __contains__(self, name: str) -> bool:
        return any(branch in self.places for branch in _branches(name))


def _branches(name: str) -> list[str]:
    """
    >>> _branches("model.norm.weight")
    ['model', 'model.norm', 'model.norm.weight']
    """
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _branch(name: str, kept: Collection[str]) -> str:
    """The largest branch of the model with `name` that is not in `kept`, without the layer's number.

    >>> _branch("model.layers.0.mlp.gate.weight", {"model", "model.layers", "model.layers.0", "model.layers.0.mlp"})
    'mlp.gate'
    >>> _branch("model.vision.layers.0.fc.weight", {"model", "model.text"})
    'model.vision'
    """
    branches = _branches(name)
    branch = next((branch for branch in branches[:-1] if branch not in kept), name)
    inner = re.split(r"\.\d+\.", branch)[-1]
    return re.sub(r"\.\d+$", "", inner)


def _ratio(part: int, total: int) -> float | None:
    return part / total if total else None


def find_trunk(model: nn.Module, head: Iterable[str]) -> Trunk:
    """The trunk of a base model without quantization; its tensors may be on the meta device."""
    from torch import nn

    output = model.get_output_embeddings()  # type: ignore[operator]
    outside = {name for name, module in model.named_modules() if isinstance(module, nn.Embedding) or module is output}
    inside = _Inside({*outside - {""}, *head})
    shapes = {
        name: tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if sum(size > 1 for size in parameter.shape) > 1 and not name.endswith("bias") and name not in inside
    }
    layers: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not name.startswith(tuple(f"{layer}." for layer in layers)):
            layers += [f"{name}.{number}" for number in range(len(module))]
    experts = {name for name in stacked_experts(model) if name in shapes}
    return Trunk(shapes, experts, [layer for layer in layers if _holds(layer, shapes)])


def _holds(layer: str, names: Iterable[str]) -> bool:
    return any(name.startswith(f"{layer}.") for name in names)
