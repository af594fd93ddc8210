"""Muon (Jordan et al., 2024): the momentum of a matrix is orthogonalized, so that all its directions learn alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from peftlab.component import Reference
from peftlab.errors import UserError
from peftlab.optimizers.adamw import AdamW
from peftlab.optimizers.optimizer import Optimizer, OptimizerPlan, counts, trained

if TYPE_CHECKING:
    import torch
    from torch import nn


class Muon(Optimizer):
    """torch's Muon (Jordan et al., 2024) for the matrices inside the model's layers, AdamW for everything else.

    Muon is made for hidden layers: embeddings, head, vectors and tensors of three dimensions are AdamW's.
    """

    kind: Literal["muon"] = "muon"
    title: ClassVar[str] = "Muon"
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            key="liu2025muon",
            author="Liu, Jingyuan and others",
            title="Muon is Scalable for LLM Training",
            year=2025,
            arxiv="2502.16982",
        ),
    )

    momentum: float = Field(0.95, ge=0, lt=1)
    """Decay rate of the running average of the gradient (Nesterov's form)."""
    update_scale: Literal["match_adamw", "original"] = "match_adamw"
    """Factor on the update of a matrix of A rows and B columns. match_adamw: 0.2 sqrt(max(A, B)), with which AdamW's
    learning rate and weight decay fit (Liu et al., 2025); original: sqrt(max(1, A / B)).
    """

    def make(self, plan: OptimizerPlan) -> torch.optim.Optimizer:
        import torch

        from peftlab.optimizers.implementations.combined import Combined, split

        self.check_installed()
        matrices = {id(parameter) for parameter in hidden_matrices(plan.model)}
        if not matrices:
            raise UserError("training.optimizer: muon: no matrix inside the model's layers is trained; use adamw")
        groups = split(plan.groups, lambda parameter: id(parameter) in matrices)
        muon = torch.optim.Muon(
            groups[True],
            momentum=self.momentum,
            adjust_lr_fn={"match_adamw": "match_rms_adamw", "original": "original"}[self.update_scale],
        )
        if not groups[False]:
            return muon
        rest = AdamW().make(
            OptimizerPlan(
                model=plan.model, groups=groups[False], betas=plan.betas, epsilon=plan.epsilon, device=plan.device
            )
        )
        return Combined([rest, muon])  # the first group's learning rate is the one that the log shows: the head's

    def state_bytes(self, model: nn.Module) -> int:
        matrices = {id(parameter) for parameter in hidden_matrices(model)}
        return sum(4 * p.numel() if id(p) in matrices else 8 * p.numel() + 4 for p in trained(model))

    def remark(self, model: nn.Module, device: str) -> str | None:
        matrices = {id(parameter) for parameter in hidden_matrices(model)}
        others = (parameter for parameter in trained(model) if id(parameter) not in matrices)
        return f"{counts(others, model)} are not matrices inside the model's layers and are AdamW's"

    def settings_text(self, betas: tuple[float, float], epsilon: float) -> str:
        adamw = super().settings_text(betas, epsilon)
        return (
            f"momentum {self.momentum:g}, update scale {self.update_scale}; AdamW outside of hidden matrices, {adamw}"
        )

    def check_installed(self) -> None:
        import torch

        if not hasattr(torch.optim, "Muon"):
            raise UserError(f"training.optimizer: muon: torch {torch.__version__} has none; install torch 2.9 or newer")


def hidden_matrices(model: nn.Module) -> Iterator[nn.Parameter]:
    """The trained matrices inside the model's repeated layers, without tables that are looked up by index.

    A matrix of one row or column, such as IA3's scales, is a vector.
    """
    from torch import nn

    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    inside = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.ModuleList)
        for parameter in module.parameters()
    }
    for parameter in trained(model):
        if id(parameter) in inside - tables and parameter.dim() == 2 and min(parameter.shape) > 1:
            yield parameter
