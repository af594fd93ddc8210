"""Checks that training reaches every trainable tensor, before an evaluation and after it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from peftlab.distributed.fsdp import full_tensor
from peftlab.errors import UserError

Gradient = Callable[[torch.nn.Parameter], torch.Tensor | None]
"""Returns the full gradient of a parameter, or None."""

SAMPLE = 256  # values of a tensor that are kept to see whether it changes


@dataclass(frozen=True)
class GradientStats:
    """The trainable tensors between a backward pass and the optimizer step."""

    count: int
    missing: tuple[str, ...]  # without a gradient, by name
    zero: tuple[str, ...]  # with a gradient of zeros only
    samples: Mapping[str, torch.Tensor]  # the first values of each tensor


def of_parameter(parameter: torch.nn.Parameter) -> torch.Tensor | None:
    """Gradient of a parameter that is not sharded."""
    return parameter.grad


def inspect(model: torch.nn.Module, gradient: Gradient = of_parameter) -> GradientStats:
    """Current stats of the model's gradients. A collective call if the model is sharded."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    missing, zero = [], []
    for name, parameter in trainable.items():
        tensor = gradient(parameter)
        if tensor is None:
            missing.append(name)
        elif not tensor.any():
            zero.append(name)
    samples = {name: full_tensor(p).flatten()[:SAMPLE].clone() for name, p in trainable.items()}
    return GradientStats(len(trainable), tuple(missing), tuple(zero), samples)


def require_gradients(
    model: torch.nn.Module,
    step: int,
    first: GradientStats | None = None,
    *,
    loss: float = math.nan,
    may_train_unused: bool = False,
    may_be_idle: Callable[[str], bool] = lambda name: False,
    gradient: Gradient = of_parameter,
) -> GradientStats:
    """Raise UserError if a trainable tensor has no gradient now, or one of zeros both in the `first` stats and now.

    Zeros in one step can be correct: the gradient of LoRA's A is zero while B is. With `may_train_unused`, tensors
    without a gradient in the first stats too may belong to a part of the base that no forward uses. With a `loss` of 0
    the message names the examples as the cause.
    """
    stats = inspect(model, gradient)
    missing: Sequence[str] = stats.missing
    if may_train_unused and first is None and len(missing) < stats.count:
        missing = ()
    elif may_train_unused and first is not None:
        missing = [name for name in missing if name not in first.missing]
    idle = [name for name in stats.zero if not may_be_idle(name)]
    dead = [*missing, *(name for name in idle if first is not None and name in first.zero)]
    if dead and not missing and loss == 0:
        raise UserError(_nothing_to_learn(step))
    if dead:
        when = f"step {step}" if first is None else f"step {step}, after an evaluation"
        raise UserError(
            f"training: at {when}, {len(dead)} of {stats.count} trainable tensors get no gradient ({_some(dead)}), "
            "so they would not be trained; run peftlab doctor on this recipe for details"
        )
    return stats


def require_updates(model: torch.nn.Module, first: GradientStats, step: int, *, loss: float = math.nan) -> None:
    """Raise UserError if no trainable tensor has changed since the `first` stats. `loss` is the largest one so far."""
    now = inspect(model).samples
    if all(torch.equal(now[name], then) for name, then in first.samples.items()):
        if loss == 0:
            raise UserError(_nothing_to_learn(step))
        raise UserError(
            f"training: after {step} steps none of {first.count} trainable tensors has changed; "
            "training.learning_rate is too small, or the optimizer does not have them"
        )


def _nothing_to_learn(step: int) -> str:
    return f"data: at step {step} the loss and every gradient are 0: its examples have nothing to learn"


def _some(names: Sequence[str]) -> str:
    """
    >>> _some(["a", "b", "c", "d"])
    'a, b, ...'
    """
    return ", ".join([*names[:2], "..."] if len(names) > 2 else names)
