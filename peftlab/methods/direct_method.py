"""Methods that add nothing: they train some of the model's own parameters and save just those."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from peftlab.errors import UserError
from peftlab.methods.method import Method, TrainingPlan

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class DirectMethod(Method):
    """A subclass says which of the base's own parameters train; the head always does."""

    merges: ClassVar[bool] = True
    file: ClassVar[str] = "trained.safetensors"  # of the tensors

    def trains(self, name: str, model: nn.Module) -> bool:
        """Whether the base's parameter of this full name is trained."""
        raise NotImplementedError

    def apply(self, model: PreTrainedModel, plan: TrainingPlan) -> nn.Module:
        head = tuple(f"{name}." for name in plan.head)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(
                parameter.is_floating_point() and (name.startswith(head) or self.trains(name, model))
            )
        return model

    def save(self, model: nn.Module, folder: Path) -> None:
        from safetensors.torch import save_file

        trained = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}
        save_file(trained, folder / self.file, metadata={"format": "pt"})

    def load(self, base: PreTrainedModel, folder: Path, *, trainable: bool = False) -> nn.Module:
        import torch
        from safetensors.torch import load_file

        own = dict(base.named_parameters())
        buffers = dict(base.named_buffers())  # a whole model is saved with them, e.g. BART's final_logits_bias
        saved = load_file(folder / self.file)
        known: dict[str, torch.Tensor] = {**buffers, **own}
        unexpected_trainable = [
            name for name, tensor in saved.items() if name not in known or known[name].shape != tensor.shape
        ]
        if unexpected_trainable:
            raise UserError(f"{folder / self.file}: {unexpected_trainable[0]!r} does not fit this base")
        with torch.no_grad():
            for name, tensor in saved.items():
                known[name].copy_(tensor)
            for name, parameter in own.items():
                parameter.requires_grad_(trainable and name in saved)
        return base

    def merge(self, model: nn.Module) -> nn.Module:
        return model
