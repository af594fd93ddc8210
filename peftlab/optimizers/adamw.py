"""AdamW (Loshchilov & Hutter, 2019): Adam with a weight decay that does not pass through its denominator."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from peftlab.optimizers.optimizer import Optimizer, OptimizerPlan, trained

if TYPE_CHECKING:
    import torch
    from torch import nn


class AdamW(Optimizer):
    """torch's AdamW: two float32 averages per parameter, 8 bytes of state."""

    kind: Literal["adamw"] = "adamw"
    title: ClassVar[str] = "AdamW"
    partitions: ClassVar[bool] = True

    def make(self, plan: OptimizerPlan) -> torch.optim.Optimizer:
        import torch

        return torch.optim.AdamW(
            plan.groups,
            betas=plan.betas,
            eps=plan.epsilon,
            fused=True,  # one pass over each tensor; foreach copies all gradients at once
        )

    def state_bytes(self, model: nn.Module) -> int:
        return sum(8 * parameter.numel() + 4 for parameter in trained(model))  # a step count for each tensor
