"""Selection of the modules that a method is attached to, by role or by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from peftlab.errors import UserError, nearest
from peftlab.models.text_branch import outside

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Targets = Literal["all-linear", "attention"] | Annotated[list[str], Field(min_length=1)]
"""A role, or names of linear layers."""


def chosen_layers(model: PreTrainedModel, targets: Targets, head: Iterable[str]) -> list[str]:
    """Full names of the layers that a recipe's `targets` select. Raises UserError if a target matches no layer."""
    if targets == "all-linear":
        return linear_layers(model, head)
    if targets == "attention":
        return attention_layers(model, head)
    return named_layers(model, targets, head)


def linear_layers(model: PreTrainedModel, head: Iterable[str]) -> list[str]:
    """Full names of the linear layers, quantized or not, without the head and the output embedding.

    Those of a multimodal model are of its text branch alone.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    output = model.get_output_embeddings()
    head = tuple(head)
    left_out = tuple(f"{name}." for name in (*head, *outside(model, head)))
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not output and not f"{name}.".startswith(left_out)
    ]


def attention_layers(model: PreTrainedModel, head: Iterable[str]) -> list[str]:
    """Full names of the projections that PEFT adapts by default: query and value, as in the LoRA paper."""
    # PEFT's table for LoRA includes Phi's feed-forward layers; the one for VeRA is the same without them.
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_VERA_TARGET_MODULES_MAPPING as DEFAULTS

    architecture = model.config.model_type
    names = DEFAULTS.get(architecture)
    if not isinstance(names, list):
        raise UserError(
            f"method.targets: no attention projections are known for {architecture!r}; "
            f"name them, or use 'all-linear': {_inventory(linear_layers(model, head))}"
        )
    return named_layers(model, names, head)


def named_layers(model: PreTrainedModel, names: Iterable[str], head: Iterable[str]) -> list[str]:
    """Full names of the linear layers that equal one of `names` or end in a dot and one of them.

    Raises UserError if a name matches no layer.
    """
    layers = linear_layers(model, head)
    selected: list[str] = []
    for name in names:
        matches = [layer for layer in layers if f".{layer}".endswith(f".{name}")]
        if not matches:
            last = {layer.rsplit(".", 1)[-1] for layer in layers}
            hint = nearest(name, last)
            reason = "matches no linear layer"
            if _in_head(name, head):
                reason = "is in the task head, which is always trained"
            raise UserError(f"method.targets: {name!r} {reason}{hint}; available are: {_inventory(layers)}")
        selected += [match for match in matches if match not in selected]
    return sorted(selected, key=layers.index)


def _in_head(name: str, head: Iterable[str]) -> bool:
    return any(f"{part}.".startswith(f"{name}.") or f"{name}.".startswith(f"{part}.") for part in head)


def _inventory(layers: list[str]) -> str:
    """Distinct last components of the names, each with its number of occurrences.

    >>> _inventory(["a.0.query", "a.1.query", "a.0.out"])
    'query x2, out x1'
    """
    counts: dict[str, int] = {}
    for layer in layers:
        last = layer.rsplit(".", 1)[-1]
        counts[last] = counts.get(last, 0) + 1
    return ", ".join(f"{name} x{count}" for name, count in counts.items())
