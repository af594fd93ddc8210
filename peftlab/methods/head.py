"""Head only: trains the task head on a frozen base model. The baseline of every table."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from peftlab.errors import UserError
from peftlab.methods.direct_method import DirectMethod
from peftlab.methods.method import MethodContext, TrainingPlan

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

REASON = "this task uses the base model's own output layer, so there is no new head to train"


class Head(DirectMethod):
    """Trains only the task head: the baseline every method must beat."""

    kind: Literal["head"] = "head"
    title: ClassVar[str] = "head alone"
    learning_rate: ClassVar[float] = 1e-3

    @property
    def trains_base(self) -> bool:
        return False

    @property
    def acts_on(self) -> str:
        return "the head"

    def incompatible_with(self, context: MethodContext) -> str | None:
        return REASON if context.task_type in ("CAUSAL_LM", "SEQ_2_SEQ_LM") else None

    def apply(self, model: PreTrainedModel, plan: TrainingPlan) -> nn.Module:
        if not plan.head:
            raise UserError(f"method.kind: {REASON}")
        return super().apply(model, plan)

    def trains(self, name: str, model: nn.Module) -> bool:
        return False
