"""Prompt tuning (Lester et al., 2021): trainable virtual token embeddings before the input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from peftlab.component import Reference
from peftlab.methods.method import TrainingPlan
from peftlab.methods.virtual_tokens import EmbeddedTokens, prompt_shape, text_tokens

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel


class PromptTuning(EmbeddedTokens):
    """Trains virtual token embeddings before the input (prompt tuning, Lester et al., 2021).

    There are length * width parameters.
    """

    kind: Literal["prompt_tuning"] = "prompt_tuning"
    title: ClassVar[str] = "prompt tuning"
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            key="lester2021prompt",
            author="Lester, Brian and others",
            title="The Power of Scale for Parameter-Efficient Prompt Tuning",
            year=2021,
            arxiv="2104.08691",
        ),
    )
    learning_rate: ClassVar[float] = 3e-2
    test_settings: ClassVar[tuple[dict[str, Any], ...]] = ({"length": 4},)

    initial: Literal["vocabulary", "random"] = "vocabulary"
    """Initial values: the embeddings of random tokens of the vocabulary, or random numbers."""
    initial_text: str | None = Field(None, examples=["Tag the names in this sentence."])
    """Initialize with the embeddings of this text, cut or repeated to `length` tokens. Overrides `initial`."""

    def config(self, model: PreTrainedModel, plan: TrainingPlan) -> PeftConfig:
        from peft import PromptTuningConfig

        return PromptTuningConfig(
            task_type=plan.task_type,
            num_virtual_tokens=self.length,
            prompt_tuning_init="RANDOM" if self.initial == "random" else "SAMPLE_VOCAB",
            modules_to_save=list(plan.head) or None,
            **prompt_shape(model),
        )

    def apply(self, model: PreTrainedModel, plan: TrainingPlan) -> PeftModel:
        import torch

        wrapped: Any = super().apply(model, plan)
        if self.initial_text is not None:
            ids = torch.tensor(text_tokens(self.initial_text, self.length, plan), device=model.device)
            with torch.no_grad():
                wrapped.prompt_encoder["default"].embedding.weight.copy_(wrapped.word_embeddings(ids))
        return wrapped  # type: ignore[no-any-return]
