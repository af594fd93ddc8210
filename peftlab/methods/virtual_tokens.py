"""Base classes of the methods that place trainable virtual tokens before the input."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from peftlab.errors import UserError
from peftlab.methods.method import MethodContext, TrainingPlan
from peftlab.methods.peft_method import PeftMethod
from peftlab.models.facts import facts_of

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel


class VirtualTokens(PeftMethod):
    """Method with `length` virtual tokens. Only the resulting vectors are saved, not a network that computes them."""

    size_setting: ClassVar[str | None] = "length"

    length: int = Field(20, ge=1)
    """Number of virtual tokens."""

    @property
    def starts_as_base(self) -> bool:
        return False

    @property
    def acts_on(self) -> str:
        return "virtual tokens"

    @property
    def positions(self) -> int:
        return self.length

    def incompatible_with(self, context: MethodContext) -> str | None:
        if context.packed:
            return f"{self.title} affects only the first row of a packed sequence; set task.packing: false"
        return None

    def apply(self, model: PreTrainedModel, plan: TrainingPlan) -> PeftModel:
        _check_positions(model, self.length, plan.longest_input)
        wrapped: Any = super().apply(model, plan)
        encoder = wrapped.prompt_encoder["default"]
        encoder.forward = MethodType(_in_float32, encoder)
        return wrapped  # type: ignore[no-any-return]

    def save(self, model: nn.Module, folder: Path) -> None:
        import torch

        with torch.no_grad():  # an LSTM that records gradients uses another kernel, whose last digits differ
            super().save(model, folder)

    def load(self, base: PreTrainedModel, folder: Path, *, trainable: bool = False) -> PeftModel:
        model = super().load(base, folder)  # PEFT loads virtual tokens for inference only
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable and ("prompt_encoder." in name or ".modules_to_save." in name))
        return model

    @contextlib.contextmanager
    def disabled(self, model: nn.Module) -> Iterator[None]:
        wrapped: Any = model
        # PEFT's disable_adapter fails if the base model cannot generate.
        wrapped.forward, wrapped._adapters_disabled = wrapped.base_model.forward, True
        try:
            yield
        finally:
            del wrapped.forward
            wrapped._adapters_disabled = False


class EmbeddedTokens(VirtualTokens):
    """Virtual tokens that are prepended to the input embeddings; the model's outputs are longer by `length`."""

    def incompatible_with(self, context: MethodContext) -> str | None:
        architecture = context.architecture
        if context.task_type == "SEQ_CLS" and architecture is not None and facts_of(architecture).last_token:
            return _pooling_conflict(self.title, architecture)
        return question_answering_conflict(self.title, context) or super().incompatible_with(context)

    def apply(self, model: PreTrainedModel, plan: TrainingPlan) -> PeftModel:
        if plan.task_type == "SEQ_CLS" and {"score", "classification_head"}.intersection(plan.head):
            raise UserError(f"method: {_pooling_conflict(self.title, model.config.model_type)}")
        return _remove_virtual_outputs(super().apply(model, plan))

    def load(self, base: PreTrainedModel, folder: Path, *, trainable: bool = False) -> PeftModel:
        return _remove_virtual_outputs(super().load(base, folder, trainable=trainable))


def _in_float32(encoder: nn.Module, tokens: Tensor) -> Tensor:
    """Compute the virtual tokens without autocast: they are saved as float32, and LSTMs lack bfloat16 on the CPU."""
    import torch

    with torch.autocast(tokens.device.type, enabled=False):
        return type(encoder).forward(encoder, tokens)  # type: ignore[no-any-return]


def prompt_shape(model: PreTrainedModel) -> dict[str, Any]:
    """Sizes for PEFT's prompt configs, which PEFT does not find in every model config.

    `token_dim` is the width of the embeddings, which differs from that of the layers in ALBERT and small ELECTRAs.
    """
    embeddings: Any = model.get_input_embeddings()
    config = model.config.get_text_config()
    return {
        "num_transformer_submodules": 1,  # PEFT would create unused tokens for the second one of an encoder-decoder
        "num_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "token_dim": embeddings.weight.shape[1],
    }


def text_tokens(text: str, length: int, plan: TrainingPlan) -> list[int]:
    """Token ids of `text`, cut or repeated to `length`. Raises UserError if there are none."""
    if plan.tokenize is None:
        raise UserError("method.initial_text: requires a tokenizer")
    ids = plan.tokenize(text)
    if not ids:
        raise UserError(f"method.initial_text: {text!r} has no tokens")
    return (ids * (length // len(ids) + 1))[:length]


def _check_positions(model: PreTrainedModel, length: int, longest_input: int | None) -> None:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is None or longest_input is None:
        return
    tables = [
        m for name, m in model.named_modules() if name.endswith("position_embeddings") and hasattr(m, "padding_idx")
    ]
    if tables and tables[0].padding_idx is not None:
        positions -= tables[0].padding_idx + 1  # RoBERTa numbers positions from padding_idx + 1
    if longest_input + length > positions:
        raise UserError(
            f"method.length: {length} virtual tokens and the longest input ({longest_input} tokens) need "
            f"{longest_input + length} positions, but {model.config.model_type} has {positions}; "
            f"set task.max_length to at most {positions - length}"
        )


def question_answering_conflict(title: str, context: MethodContext) -> str | None:
    """Reason why virtual tokens cannot be used for question answering in `context`, or None."""
    if context.task_type != "QUESTION_ANS" or context.architecture is None:
        return None
    if not facts_of(context.architecture).encoder_decoder:
        return None
    return (
        f"{title} does not support question answering with {context.architecture}, whose decoder reads the input again "
        "without virtual tokens; use lora"
    )


def _pooling_conflict(title: str, architecture: str) -> str:
    return (
        f"{title} cannot classify sequences with {architecture}, which locates the last token by its id and receives "
        "embeddings instead; use prefix_tuning or lora"
    )


def _remove_virtual_outputs(model: PeftModel) -> PeftModel:
    """Remove the virtual tokens' logits, which PEFT leaves in front of the others, for tasks with token labels."""
    if model.active_peft_config.task_type in ("TOKEN_CLS", "QUESTION_ANS", "CAUSAL_LM"):
        model.register_forward_hook(_drop_virtual)
    return model


def _drop_virtual(model: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> Any:
    if not model._adapters_disabled:
        length = model.active_peft_config.num_virtual_tokens  # type: ignore[union-attr]
        for name in ("logits", "start_logits", "end_logits"):
            if name in outputs:
                outputs[name] = outputs[name][:, length:]
    return outputs
