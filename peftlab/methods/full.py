"""Full fine-tuning: every parameter trains. The reference of every table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from peftlab.errors import UserError
from peftlab.methods.direct_method import DirectMethod
from peftlab.methods.method import MethodContext

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class Full(DirectMethod):
    """No base is kept apart: what is saved is the whole model."""

    kind: Literal["full"] = "full"
    title: ClassVar[str] = "full fine-tuning"
    learning_rate: ClassVar[float] = 5e-5
    file: ClassVar[str] = "model.safetensors"
    may_train_unused: ClassVar[bool] = True
    folder: ClassVar[str] = "model"

    @property
    def trains_base(self) -> bool:
        return True

    def incompatible_with(self, setting: MethodContext) -> str | None:
        if setting.quantization != "none":
            frozen = setting.quantization
            return f"full fine-tuning changes the base's weights, which {frozen} freezes; use quantization: none"
        return None

    def save(self, model: nn.Module, folder: Path) -> None:
        model.save_pretrained(folder)  # type: ignore[operator]

    def load(self, base: PreTrainedModel, folder: Path, *, trainable: bool = False) -> nn.Module:
        """Through transformers: in the files some tensors have other names than in the model (GPT-NeoX's lm_head)."""
        import torch

        own: Any = type(base)
        try:
            saved, found = own.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
            unexpected_trainable = sorted(found["missing_keys"] | found["unexpected_keys"])
            if not unexpected_trainable:
                base.load_state_dict(saved.state_dict())
        except RuntimeError as error:  # another shape
            raise UserError(f"{folder / self.file}: does not fit this base: {str(error).splitlines()[-1]}") from None
        if unexpected_trainable:
            raise UserError(f"{folder / self.file}: {unexpected_trainable[0]!r} does not fit this base")
        base.requires_grad_(trainable)
        return base

    def trains(self, name: str, model: nn.Module) -> bool:
        return True
