"""P-tuning (Liu et al., 2021): virtual token embeddings before the input, computed by a small trainable network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from peftlab.component import Reference
from peftlab.methods.method import Method, TrainingPlan
from peftlab.methods.virtual_tokens import EmbeddedTokens, prompt_shape

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel


class PTuning(EmbeddedTokens):
    """Trains a small network that computes virtual token embeddings before the input (P-tuning, Liu et al., 2021).

    Only the embeddings are saved: length * width values.
    """

    kind: Literal["p_tuning"] = "p_tuning"
    title: ClassVar[str] = "P-tuning"
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            key="liu2021ptuning",
            author="Liu, Xiao and others",
            title="GPT Understands, Too",
            year=2021,
            arxiv="2103.10385",
        ),
    )
    fidelity: ClassVar[str | None] = "all virtual tokens precede the input (paper: anywhere in a template)"
    learning_rate: ClassVar[float] = 1e-3
    size_setting: ClassVar[str | None] = None  # most parameters are the network's, whatever the length
    test_settings: ClassVar[tuple[dict[str, Any], ...]] = ({"length": 4}, {"length": 4, "encoder": "mlp"})

    encoder: Literal["lstm", "mlp"] = "lstm"
    """`lstm`: a bidirectional LSTM followed by two linear layers. `mlp`: three linear layers."""
    encoder_width: int | None = Field(None, ge=1, examples=[512])
    """Hidden units of the network; the width of the embeddings by default."""
    encoder_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability between the layers of the LSTM."""

    def cannot_start_from(self, earlier: Method) -> str | None:
        return super().cannot_start_from(earlier) or (
            "P-tuning saves the virtual tokens only, without the network that made them; use prompt_tuning in both runs"
        )

    def config(self, model: PreTrainedModel, plan: TrainingPlan) -> PeftConfig:
        from peft import PromptEncoderConfig

        shape = prompt_shape(model)
        return PromptEncoderConfig(
            task_type=plan.task_type,
            num_virtual_tokens=self.length,
            encoder_reparameterization_type=self.encoder.upper(),
            encoder_hidden_size=self.encoder_width or shape["token_dim"],
            encoder_dropout=self.encoder_dropout,
            modules_to_save=list(plan.head) or None,
            **shape,
        )
