"""BitFit (Ben Zaken et al., 2021): trains the biases and freezes the weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from peftlab.component import Reference
from peftlab.errors import UserError
from peftlab.methods.direct_method import DirectMethod
from peftlab.methods.dtypes import compute_in_float32
from peftlab.methods.method import MethodContext, TrainingPlan
from peftlab.models.facts import facts_of
from peftlab.models.text_branch import is_part_of, outside

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class BitFit(DirectMethod):
    """Trains only the bias vectors of the base model, those of its norms included (BitFit, Ben Zaken et al., 2021)."""

    kind: Literal["bitfit"] = "bitfit"
    title: ClassVar[str] = "BitFit"
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            key="benzaken2021bitfit",
            author="Ben Zaken, Elad and others",
            title="BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models",
            year=2021,
            arxiv="2106.10199",
        ),
    )
    learning_rate: ClassVar[float] = 1e-3
    may_train_unused: ClassVar[bool] = True

    @property
    def acts_on(self) -> str:
        return "biases"

    def incompatible_with(self, context: MethodContext) -> str | None:
        if context.architecture is not None and not facts_of(context.architecture).biases:
            return f"BitFit trains biases, and {context.architecture} has none; use lora or ia3"
        return None

    def trains(self, name: str, model: nn.Module) -> bool:
        return name.endswith("bias")  # DeBERTa's q_bias and v_bias are parameters outside of any linear layer

    def apply(self, model: PreTrainedModel, plan: TrainingPlan) -> nn.Module:
        others = (*plan.head, *outside(model, plan.head))
        if not any(self.trains(name, model) and not is_part_of(name, others) for name, _ in model.named_parameters()):
            raise UserError(f"method.kind: BitFit trains biases, and this {model.config.model_type} has none")
        compute_in_float32(model)
        return super().apply(model, plan)

    def load(self, base: PreTrainedModel, folder: Path, *, trainable: bool = False) -> nn.Module:
        compute_in_float32(base)
        return super().load(base, folder, trainable=trainable)
