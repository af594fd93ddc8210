"""Several optimizers as one, each for parameter groups of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

Groups = list[dict[str, Any]]


class Combined(torch.optim.Optimizer):
    """Steps each of its parts. Groups and state are those of all parts: a scheduler and a checkpoint see
    one optimizer.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self._parts = [(part, len(part.param_groups)) for part in parts]
        super().__init__([group for part in parts for group in part.param_groups], {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step every part. A closure is not supported."""
        assert closure is None
        groups = iter(self.param_groups)
        for part, count in self._parts:
            # Loading a checkpoint replaces groups and state by new objects.
            part.param_groups = [next(groups) for _ in range(count)]
            part.state = self.state
            part.step()


def split(groups: Iterable[dict[str, Any]], condition: Callable[[nn.Parameter], bool]) -> dict[bool, Groups]:
    """The groups with the parameters that meet the condition, and those with the others. Empty ones are left out."""
    parts: dict[bool, Groups] = {True: [], False: []}
    for group in groups:
        for answer, part in parts.items():
            members = [parameter for parameter in group["params"] if condition(parameter) is answer]
            if members:
                part.append({**group, "params": members})
    return parts
