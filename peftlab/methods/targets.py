"""Selection of the modules that a method is attached to, by role or by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from peftlab.errors import UserError, nearest
from peftlab.methods.experts import require_not_stacked
from peftlab.models.fact_types import matching
from peftlab.models.facts import facts_of
from peftlab.models.text_branch import outside

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Targets = Literal["all-linear", "attention"] | Annotated[list[str], Field(min_length=1)]
"""A role, or names or patterns of linear layers."""


def chosen_layers(
    model: PreTrainedModel, targets: Targets, head: Iterable[str], *, task_type: str = "", exclude: Iterable[str] = ()
) -> list[str]:
    """Full names of the layers that a recipe's `targets` select, without those of `exclude` and of `left_out`.

    Raises UserError if a target or an exclusion matches no layer, or if no layer remains.
    """
    head = tuple(head)
    layers = linear_layers(model, head)
    out = left_out(model, layers, task_type)
    if targets == "all-linear":
        chosen = layers
    elif targets == "attention":
        chosen = attention_layers(model, head)
    else:
        chosen = named_layers(model, targets, head, out)
    excluded = {layer for pattern in exclude for layer in _matches(pattern, layers, head, "method.exclude")}
    chosen = [layer for layer in chosen if layer not in excluded and layer not in out]
    if not chosen:
        raise UserError(f"method.targets: no layer is left to adapt; available are: {_inventory(layers)}")
    return chosen


def left_out(model: PreTrainedModel, layers: Iterable[str], task_type: str) -> dict[str, str]:
    """Those of the linear layers that no adapter can train in this task, by full name, with the reasons."""
    reasons = facts_of(model.config.model_type).left_out.get(task_type, {})
    layers = list(layers)
    return {layer: reason for pattern, reason in reasons.items() for layer in matching(layers, [pattern])}


def left_out_remark(model: PreTrainedModel, head: Iterable[str], task_type: str) -> str | None:
    """Number of the linear layers that are left out, with an example of each reason; None if there are none."""
    out = left_out(model, linear_layers(model, head), task_type)
    if not out:
        return None
    examples: dict[str, str] = {}
    for layer, reason in out.items():
        examples.setdefault(reason, layer)
    text = "; ".join(f"e.g. {layer}: {reason}" for reason, layer in examples.items())
    return f"{len(out)} linear {'layer' if len(out) == 1 else 'layers'} left out, {text}"


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
    """Full names of the query and value projections, as in the LoRA paper."""
    layers = linear_layers(model, head)
    facts = facts_of(model.config.model_type)
    found = matching(layers, facts.queries_and_values) or _known_to_peft(model, layers)
    if not found:
        raise UserError(
            f"method.targets: no attention projections are known for {model.config.model_type!r} "
            f"({facts.reason('queries_and_values')}); name them, or use 'all-linear': {_inventory(layers)}"
        )
    return found


def _known_to_peft(model: PreTrainedModel, layers: Sequence[str]) -> list[str]:
    """Layers that PEFT adapts by default; none where it has no list. For models that no trace can build."""
    # PEFT's table for LoRA includes Phi's feed-forward layers; the one for VeRA is the same without them.
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_VERA_TARGET_MODULES_MAPPING as DEFAULTS

    names = DEFAULTS.get(model.config.model_type)
    return matching(layers, names) if isinstance(names, list) else []


def named_layers(
    model: PreTrainedModel, names: Iterable[str], head: Iterable[str], out: Mapping[str, str] | None = None
) -> list[str]:
    """Full names of the linear layers that match one of `names`: a full name, the end of one, or a pattern of either.

    Raises UserError if a name matches no layer, or only layers of `out`, whose values are reasons.
    """
    head = tuple(head)
    layers = linear_layers(model, head)
    selected: set[str] = set()
    for name in names:
        require_not_stacked(name, model, layers)
        matches = _matches(name, layers, head, "method.targets")
        if out and all(layer in out for layer in matches):
            raise UserError(f"method.targets: {name!r} cannot be adapted: {matches[0]}: {out[matches[0]]}")
        selected.update(matches)
    return [layer for layer in layers if layer in selected]


def _matches(name: str, layers: Sequence[str], head: Sequence[str], key: str) -> list[str]:
    """Layers whose full name, or the end of it after a dot, equals `name` or matches it as a pattern."""
    matches = [layer for layer in layers if fnmatchcase(f".{layer}", f"*.{name}")]
    if not matches:
        parts = {".".join(layer.split(".")[start:]) for layer in layers for start in range(layer.count(".") + 1)}
        parts |= {part for layer in layers for part in layer.split(".")}
        reason = f"matches no linear layer{nearest(name, parts)}"
        if _in_head(name, head):
            reason = "is in the task head, which is always trained"
        raise UserError(f"{key}: {name!r} {reason}; available are: {_inventory(layers)}")
    return matches


def _in_head(name: str, head: Iterable[str]) -> bool:
    return any(f"{part}.".startswith(f"{name}.") or f"{name}.".startswith(f"{part}.") for part in head)


def _inventory(layers: Sequence[str]) -> str:
    """Distinct last components of the names, each with its number of occurrences.

    >>> _inventory(["a.0.query", "a.1.query", "a.0.out"])
    'query x2, out x1'
    """
    counts: dict[str, int] = {}
    for layer in layers:
        last = layer.rsplit(".", 1)[-1]
        counts[last] = counts.get(last, 0) + 1
    return ", ".join(f"{name} x{count}" for name, count in counts.items())
