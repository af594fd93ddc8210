"""GradientStats of life: that training reaches every trainable tensor, before an evaluation and after it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from peftlab.distributed.fsdp import full_tensor
from peftlab.errors import UserError

Gradient = Callable[[torch.nn.Parameter], torch.Tensor | None]  # of a parameter, if it has one

SAMPLE = 256  # numbers of a tensor that are kept to see whether it moves


@dataclass(frozen=True)
class GradientStats:
    """What is seen of the trainable tensors between a backward pass and the optimiser's step."""

    count: int
    missing: tuple[str, ...]  # got no gradient
    zero: tuple[str, ...]  # got nothing but zeros
    samples: Mapping[str, torch.Tensor]  # first numbers of each


def of_parameter(parameter: torch.nn.Parameter) -> torch.Tensor | None:
    """The gradient of a parameter that this process has all of."""
    return parameter.grad


def inspect(model: torch.nn.Module, gradient: Gradient = of_parameter) -> GradientStats:
    """At the gradients as they are now: a meeting of the processes if these are in shares."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    missing, zero = [], []
    for name, parameter in trainable.items():
        found = gradient(parameter)
        if found is None:
            missing.append(name)
        elif not found.any():
            zero.append(name)
    samples = {name: full_tensor(p).flatten()[:SAMPLE].clone() for name, p in trainable.items()}
    return GradientStats(len(trainable), tuple(missing), tuple(zero), samples)


def require_gradients(
    model: torch.nn.Module,
    step: int,
    first: GradientStats | None = None,
    *,
    loss: float = math.nan,
    whole_base: bool = False,
    gradient: Gradient = of_parameter,
) -> GradientStats:
    """Raise UserError if a trainable tensor has no gradient at this step, or was zero at the `first` look and is now.

    One look alone may see zeros that are right: LoRA's A has no gradient while B is zero. Of a base that is trained
    whole, what had no gradient at the first look either may be a part that no forward uses. Where the `loss` is 0 it
    is the examples that teach nothing.
    """
    signs = inspect(model, gradient)
    missing: Sequence[str] = signs.missing
    if whole_base and first is None and len(missing) < signs.count:
        missing = ()
    elif whole_base and first is not None:
        missing = [name for name in missing if name not in first.missing]
    dead = [*missing, *(name for name in signs.zero if first is not None and name in first.zero)]
    if dead and not missing and loss == 0:
        raise UserError(_nothing_to_learn(step))
    if dead:
        when = f"step {step}" if first is None else f"step {step}, after an evaluation"
        raise UserError(
            f"training: at {when}, {len(dead)} of {signs.count} trainable tensors get no gradient ({_some(dead)}), "
            "so they would not be trained; peftlab doctor says more of this recipe"
        )
    return signs


def require_updates(model: torch.nn.Module, first: GradientStats, step: int, *, loss: float = math.nan) -> None:
    """Raise UserError if all the trainable tensors are what they were at the first look; `loss` is the largest yet."""
    now = inspect(model).samples
    if all(torch.equal(now[name], then) for name, then in first.samples.items()):
        if loss == 0:
            raise UserError(_nothing_to_learn(step))
        raise UserError(
            f"training: after {step} steps none of {first.count} trainable tensors has changed; "
            "training.learning_rate is too small, or the optimiser does not have them"
        )


def _nothing_to_learn(step: int) -> str:
    return f"data: at step {step} the loss is 0, and so is every gradient: its examples have nothing to learn"


def _some(names: Sequence[str]) -> str:
    """
    >>> _some(["a", "b", "c", "d"])
    'a, b, ...'
    """
    return ", ".join([*names[:2], "..."] if len(names) > 2 else names)
