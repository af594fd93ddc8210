"""Experts of a mixture of experts that are stacked in 3-D parameters: (experts, rows, columns)."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from peftlab.errors import UserError

if TYPE_CHECKING:
    from torch import nn


def stacked_experts(model: nn.Module) -> list[str]:
    """Full names of the parameters that hold a matrix for each expert."""
    return [
        f"{owner}.{name}"
        for owner, module in model.named_modules()
        if "expert" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3
    ]


def require_not_stacked(target: str, model: nn.Module, layers: Iterable[str]) -> None:
    """Raise UserError if a target matches stacked experts and none of the linear `layers`."""

    def matches(name: str) -> bool:
        return fnmatchcase(f".{name}", f"*.{target}")

    if not any(map(matches, layers)) and any(map(matches, stacked_experts(model))):
        raise UserError(f"method.targets: {target!r} is a 3-D parameter that stacks experts: use lora's experts: true")


def expert_parameters(model: nn.Module, head: Iterable[str]) -> list[str]:
    """Full names of the stacked experts outside of the head. Raises UserError if there are none."""
    prefixes = tuple(f"{name}." for name in head)
    names = [name for name in stacked_experts(model) if not name.startswith(prefixes)]
    if not names:
        raise UserError(
            "method.experts: this base has no experts in 3-D parameters; its linear layers are method.targets'"
        )
    return names
