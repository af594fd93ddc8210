"""Adafactor (Shazeer & Stern, 2018): the average of a matrix's squared gradients is kept as one row and one column."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from peftlab.component import Reference
from peftlab.optimizers.optimizer import Optimizer, OptimizerPlan, counts, trained

if TYPE_CHECKING:
    import torch
    from torch import nn


class Adafactor(Optimizer):
    """torch's Adafactor (Shazeer & Stern, 2018): state of one row and one column per matrix, and of each vector.

    It keeps no average of the gradient. The learning rate of a tensor is `training.learning_rate` times the larger of
    its root mean square and `minimum_scale`, and at most 1 / sqrt(step) times that.
    """

    kind: Literal["adafactor"] = "adafactor"
    title: ClassVar[str] = "Adafactor"
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            key="shazeer2018adafactor",
            author="Shazeer, Noam and Stern, Mitchell",
            title="Adafactor: Adaptive Learning Rates with Sublinear Memory Cost",
            year=2018,
            arxiv="1804.04235",
        ),
    )
    uses_betas: ClassVar[bool] = False
    shards: ClassVar[bool] = False  # DTensor has no rule for the square, in place, of a norm over shards

    minimum_scale: float = Field(1.0, gt=0)
    """Smallest factor on the learning rate of a tensor. 1: as good as none, so that the rate means what it means to
    AdamW. The paper has 1e-3: a tensor that starts at zero, as LoRA's B does, then hardly moves.
    """

    def make(self, plan: OptimizerPlan) -> torch.optim.Optimizer:
        import torch

        return torch.optim.Adafactor(plan.groups, eps=(None, self.minimum_scale), foreach=False)

    def state_bytes(self, model: nn.Module) -> int:
        return sum(4 + 4 * _factored(parameter.shape) for parameter in trained(model))  # a step count for each tensor

    def remark(self, model: nn.Module, device: str) -> str | None:
        vectors = (parameter for parameter in trained(model) if parameter.dim() < 2)
        return f"{counts(vectors, model)} are vectors and keep a state of their own size"

    def settings_text(self, betas: tuple[float, float], epsilon: float) -> str:
        return f"minimum scale {self.minimum_scale:g}"


def _factored(shape: torch.Size) -> int:
    """Elements of the state: of a matrix one row and one column.

    >>> import torch
    >>> _factored(torch.Size([8, 384])), _factored(torch.Size([384])), _factored(torch.Size([4, 8, 16]))
    (392, 384, 96)
    """
    if len(shape) < 2:
        return shape.numel()
    return shape[:-2].numel() * (shape[-2] + shape[-1])
