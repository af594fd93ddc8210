"""Which modules of a base a method attaches to: by role, or by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from peftlab.errors import UserError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Targets = Literal["all-linear", "attention"] | Annotated[list[str], Field(min_length=1)]  # a role, or names


def chosen_layers(model: PreTrainedModel, targets: Targets, head: Iterable[str]) -> list[str]:
    """Full names of the layers that a recipe's `targets` mean. Raises UserError if some mean none."""
    if targets == "all-linear":
        return linear_layers(model, head)
    if targets == "attention":
        return attention_layers(model, head)
    return named_layers(model, targets, head)


def linear_layers(model: PreTrainedModel, head: Iterable[str]) -> list[str]:
    """Full names of the base's linear layers (quantised ones too), the head and the output embedding left out."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    output = model.get_output_embeddings()
    outside = tuple(f"{name}." for name in head)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not output and not f"{name}.".startswith(outside)
    ]


def attention_layers(model: PreTrainedModel, head: Iterable[str]) -> list[str]:
    """The projections that PEFT adapts by default in this architecture: the LoRA paper's query and value."""
    # LoRA's own list has Phi's feed-forward layers too; VeRA's is the same without them.
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_VERA_TARGET_MODULES_MAPPING as KNOWN

    architecture = model.config.model_type
    names = KNOWN.get(architecture)
    if not isinstance(names, list):
        raise UserError(
            f"method.targets: no attention projections are known for {architecture!r}; "
            f"name them, or use 'all-linear': {_inventory(linear_layers(model, head))}"
        )
    return named_layers(model, names, head)


def named_layers(model: PreTrainedModel, names: Iterable[str], head: Iterable[str]) -> list[str]:
    """Full names of the linear layers whose name ends in one of `names` at a dot. Every name must match something."""
    layers = linear_layers(model, head)
    found: list[str] = []
    for name in names:
        matches = [layer for layer in layers if f".{layer}".endswith(f".{name}")]
        if not matches:
            last = {layer.rsplit(".", 1)[-1] for layer in layers}
            hint = nearest(name, last)
            where = "is the task's head, which is always trained" if _in_head(name, head) else "matches no linear layer"
            raise UserError(f"method.targets: {name!r} {where}{hint}; there are: {_inventory(layers)}")
        found += [match for match in matches if match not in found]
    return sorted(found, key=layers.index)


def _in_head(name: str, head: Iterable[str]) -> bool:
    return any(f"{part}.".startswith(f"{name}.") or f"{name}.".startswith(f"{part}.") for part in head)


def _inventory(layers: list[str]) -> str:
    """`query, key, value (6 each)`: the distinct last components and how often each stands.

    >>> _inventory(["a.0.query", "a.1.query", "a.0.out"])
    'query x2, out x1'
    """
    counts: dict[str, int] = {}
    for layer in layers:
        last = layer.rsplit(".", 1)[-1]
        counts[last] = counts.get(last, 0) + 1
    return ", ".join(f"{name} x{count}" for name, count in counts.items())
