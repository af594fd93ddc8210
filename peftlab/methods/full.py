"""Full fine-tuning: every parameter is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from peftlab.errors import UserError
from peftlab.methods.direct_method import DirectMethod
from peftlab.methods.method import Method, MethodContext

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class Full(DirectMethod):
    """Trains every parameter: the reference that parameter-efficient methods are compared with.

    The full model is saved, not a difference from the base model.
    """

    kind: Literal["full"] = "full"
    title: ClassVar[str] = "full fine-tuning"
    learning_rate: ClassVar[float] = 5e-5
    file: ClassVar[str] = "model.safetensors"
    may_train_unused: ClassVar[bool] = True
    folder: ClassVar[str] = "model"

    def incompatible_with(self, context: MethodContext) -> str | None:
        if context.quantization != "none":
            return (
                f"full fine-tuning changes the base model's weights, which {context.quantization} freezes; "
                "use quantization: none"
            )
        return None

    def cannot_start_from(self, earlier: Method) -> str | None:
        return (
            "full fine-tuning starts from a complete model: give it as model, e.g. the folder model/ of a fully "
            "fine-tuned run or what peftlab merge wrote, and leave init_from out"
        )

    def remark(self, model: PreTrainedModel) -> str | None:
        coefficient = getattr(model.config.get_text_config(), "router_aux_loss_coef", None)
        if coefficient is None:
            return None
        return (
            "full fine-tuning also trains the router, without the auxiliary loss that balances the experts "
            f"(router_aux_loss_coef: {coefficient:g} in the base's config)"
        )

    def save(self, model: nn.Module, folder: Path) -> None:
        model.save_pretrained(folder)  # type: ignore[operator]

    def load(self, base: PreTrainedModel, folder: Path, *, trainable: bool = False) -> nn.Module:
        """Load through transformers, which maps names that differ between file and model (GPT-NeoX's lm_head)."""
        import torch

        model_class: Any = type(base)
        try:
            saved, info = model_class.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
            mismatched = sorted(info["missing_keys"] | info["unexpected_keys"])
            if not mismatched:
                base.load_state_dict(saved.state_dict())
        except RuntimeError as error:  # another shape
            reason = str(error).splitlines()[-1]
            raise UserError(f"{folder / self.file}: does not fit this base model: {reason}") from None
        if mismatched:
            raise UserError(f"{folder / self.file}: {mismatched[0]!r} does not fit this base model")
        base.requires_grad_(trainable)
        return base

    def trains(self, name: str, model: nn.Module) -> bool:
        return True
