"""The head alone on a frozen base: the floor of every table."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from peftlab.errors import UserError
from peftlab.methods.direct_method import DirectMethod
from peftlab.methods.method import MethodContext, TrainingPlan

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

REASON = "this task uses the base's own pretrained output, so there is no head to train alone"


class Head(DirectMethod):
    """What a method gains is what it scores above this one, which sees the base's features as they are."""

    kind: Literal["head"] = "head"
    title: ClassVar[str] = "head alone"
    learning_rate: ClassVar[float] = 1e-3

    def incompatible_with(self, setting: MethodContext) -> str | None:
        return REASON if setting.task_type in ("CAUSAL_LM", "SEQ_2_SEQ_LM") else None

    def apply(self, model: PreTrainedModel, plan: TrainingPlan) -> nn.Module:
        if not plan.head:
            raise UserError(f"method.kind: {REASON}")
        return super().apply(model, plan)

    def trains(self, name: str, model: nn.Module) -> bool:
        return False
