"""Methods that add no modules: they train some of the model's own parameters and save only those."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from peftlab.errors import UserError
from peftlab.methods.method import Method, TrainingPlan
from peftlab.models.text_branch import is_part_of, outside

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class DirectMethod(Method):
    """Trains the head and those of the base model's own parameters that a subclass selects."""

    merges: ClassVar[bool] = True
    file: ClassVar[str] = "trained.safetensors"
    """Name of the file that holds the trained tensors."""

    @property
    def trains_base(self) -> bool:
        return True

    @abstractmethod
    def trains(self, name: str, model: nn.Module) -> bool:
        """True if the base model's parameter with this full name is trained."""

    def apply(self, model: PreTrainedModel, plan: TrainingPlan) -> nn.Module:
        left_out = outside(model, plan.head)
        for name, parameter in model.named_parameters():
            trained = is_part_of(name, plan.head) or (self.trains(name, model) and not is_part_of(name, left_out))
            parameter.requires_grad_(parameter.is_floating_point() and trained)
        return model

    def adapted_places(self, model: nn.Module) -> Collection[str] | None:
        if self.acts_on != "weights":
            return None
        return [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    def save(self, model: nn.Module, folder: Path) -> None:
        from safetensors.torch import save_file

        trained = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}
        save_file(trained, folder / self.file, metadata={"format": "pt"})

    def load(self, base: PreTrainedModel, folder: Path, *, trainable: bool = False) -> nn.Module:
        import torch
        from safetensors.torch import load_file

        parameters = dict(base.named_parameters())
        # A full model is saved with its buffers, e.g. BART's final_logits_bias.
        targets: dict[str, torch.Tensor] = {**dict(base.named_buffers()), **parameters}
        saved = load_file(folder / self.file)
        unexpected = [
            name for name, tensor in saved.items() if name not in targets or targets[name].shape != tensor.shape
        ]
        if unexpected:
            raise UserError(f"{folder / self.file}: {unexpected[0]!r} does not fit this base model")
        with torch.no_grad():
            for name, tensor in saved.items():
                targets[name].copy_(tensor)
            for name, parameter in parameters.items():
                parameter.requires_grad_(trainable and name in saved)
        return base

    def merge(self, model: nn.Module) -> nn.Module:
        return model
