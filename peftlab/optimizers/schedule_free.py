"""Schedule-free AdamW (Defazio et al., 2024): an average of the weights takes the place of a falling learning rate."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from peftlab.component import Reference
from peftlab.errors import UserError
from peftlab.optimizers.optimizer import Optimizer, OptimizerPlan, trained

if TYPE_CHECKING:
    import torch
    from torch import nn


class ScheduleFreeAdamW(Optimizer):
    """AdamW of the package schedulefree (Defazio et al., 2024): evaluated and saved is an average of the weights.

    It needs `training.schedule: constant`; the warm-up stays. The gradient is taken at y, an interpolation of the
    average x and of the base sequence z; only y and z are stored. The first of `training.adam_betas` interpolates.
    """

    kind: Literal["schedule_free_adamw"] = "schedule_free_adamw"
    title: ClassVar[str] = "schedule-free AdamW"
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            key="defazio2024schedulefree",
            author="Defazio, Aaron and others",
            title="The Road Less Scheduled",
            year=2024,
            arxiv="2405.15682",
        ),
    )
    averages: ClassVar[bool] = True

    def make(self, plan: OptimizerPlan) -> torch.optim.Optimizer:
        self.check_installed()
        from schedulefree import AdamWScheduleFree

        optimizer = AdamWScheduleFree(plan.groups, betas=plan.betas, eps=plan.epsilon, foreach=False)
        optimizer.train()
        made: torch.optim.Optimizer = optimizer
        return made

    def state_bytes(self, model: nn.Module) -> int:
        return sum(8 * parameter.numel() for parameter in trained(model))

    def remark(self, model: nn.Module, device: str) -> str | None:
        return "evaluated and saved is the average of the weights; an evaluation holds a copy of the trained ones"

    def check_installed(self) -> None:
        if importlib.util.find_spec("schedulefree") is None:
            raise UserError(
                f'training.optimizer: {self.kind}: schedulefree is not installed: pip install "peftlab[schedule-free]"'
            )

    @contextlib.contextmanager
    def evaluation_weights(self, optimizer: Any) -> Iterator[None]:
        """Context in which the parameters are the average x.

        y is copied: schedulefree's own way back, computed from x and z, rounds, and an evaluation must change nothing.
        """
        import torch

        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        copies = [parameter.detach().clone() for parameter in parameters]
        self.finish(optimizer)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, copy in zip(parameters, copies, strict=True):
                    parameter.copy_(copy)
            for group in optimizer.param_groups:
                group["train_mode"] = True

    def finish(self, optimizer: Any) -> None:
        optimizer.eval()
