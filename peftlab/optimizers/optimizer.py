"""Interface that every optimizer implements."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from peftlab.component import Component, Reference

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class OptimizerPlan:
    """Facts that an optimizer is made from."""

    model: nn.Module
    """Its parameters that require a gradient are trained."""
    groups: list[dict[str, Any]]
    """Parameter groups with `params`, `lr` and `weight_decay`."""
    betas: tuple[float, float]
    epsilon: float
    device: torch.device


class Optimizer(Component):
    """Update rule of the trained parameters. A subclass holds its settings and makes torch's optimizer.

    A subclass must implement `make` and `state_bytes` and assign `kind` and `title`. Everything else has a default.

    What torch's optimizer keeps must be tensors in its `state`, and numbers in its `param_groups`: checkpoints hold
    both. Learning rate, weight decay, Adam's betas and epsilon are keys of `training`, the same for every optimizer.
    """

    title: ClassVar[str]
    """Name in texts, e.g. "AdamW"."""
    references: ClassVar[tuple[Reference, ...]] = ()
    """Papers, for the bibliography."""
    uses_betas: ClassVar[bool] = True
    """False if `training.adam_betas` and `training.adam_epsilon` have no effect."""
    averages: ClassVar[bool] = False
    """True if it is evaluated at an average of the weights, in place of a learning rate that falls."""
    shards: ClassVar[bool] = True
    """True if it updates tensors of which each process holds a shard (FSDP2)."""
    partitions: ClassVar[bool] = False
    """True if it updates each process's part of all tensors, flattened (DeepSpeed ZeRO)."""

    @abstractmethod
    def make(self, plan: OptimizerPlan) -> torch.optim.Optimizer:
        """Make torch's optimizer. Raises UserError if it cannot train this model."""

    @abstractmethod
    def state_bytes(self, model: nn.Module) -> int:
        """Bytes of the state of all trained parameters after the first step. Of an unsharded model."""

    def remark(self, model: nn.Module, device: str) -> str | None:
        """Note for the user on which tensors it treats in another way on a device type ("cpu", "cuda"), or None."""
        return None

    def settings_text(self, betas: tuple[float, float], epsilon: float) -> str:
        """The settings as a report states them, without learning rate and weight decay."""
        return f"betas {betas[0]:g} and {betas[1]:g}, epsilon {epsilon:g}"

    def check_installed(self) -> None:
        """Raise UserError if a package that this optimizer needs is not installed."""

    def incompatible_with(self, *, sharded: bool = False, zero_stage: int | None = None) -> str | None:
        """Reason in one line why it cannot train a model that is sharded in this way, or None if it can."""
        if zero_stage is not None and not self.partitions:
            return f"training.optimizer: {self.title} does not update the parts that DeepSpeed ZeRO cuts tensors into"
        if sharded and not self.shards:
            return f"training.optimizer: {self.title} does not update tensors that FSDP shards"
        return None

    def evaluation_weights(self, optimizer: torch.optim.Optimizer) -> contextlib.AbstractContextManager[None]:
        """Context in which the parameters have the values to evaluate; afterwards those to train on, bit for bit."""
        return contextlib.nullcontext()

    def finish(self, optimizer: torch.optim.Optimizer) -> None:
        """Give the parameters the values to evaluate and to save, for good."""


def trained(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of `model` that require a gradient."""
    return (parameter for parameter in model.parameters() if parameter.requires_grad)


def counts(tensors: Iterator[nn.Parameter], model: nn.Module) -> str:
    """`3 of 14 trained tensors (96 of 9,408 elements)`."""
    some, all_ = [p.numel() for p in tensors], [p.numel() for p in trained(model)]
    return f"{len(some):,} of {len(all_):,} trained tensors ({sum(some):,} of {sum(all_):,} elements)"
