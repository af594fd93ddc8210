"""What the methods share that put trained tokens before the input: the positions they take, loading, outputs."""

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

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel

# Those that classify a sequence by its last token.
LAST_TOKEN = {
    *("bart", "bloom", "falcon", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neo", "gpt_neox", "gptj", "llama"),
    *("mbart", "mistral", "mixtral", "mt5", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen3", "t5", "umt5"),
}

ENCODER_DECODERS = {"bart", "mbart", "mt5", "t5", "umt5"}


class VirtualTokens(PeftMethod):
    """A subclass says what the tokens are; once trained, they are kept as plain vectors, without what made them."""

    size_setting: ClassVar[str | None] = "length"

    length: int = Field(20, ge=1)  # virtual tokens

    @property
    def starts_as_base(self) -> bool:
        return False

    @property
    def positions(self) -> int:
        return self.length

    def incompatible_with(self, setting: MethodContext) -> str | None:
        if setting.packed:
            return f"{self.title} comes before the first row of a sequence alone; set task.packing: false"
        return None

    def apply(self, model: PreTrainedModel, plan: TrainingPlan) -> PeftModel:
        _check_positions(model, self.length, plan.longest_input)
        wrapped: Any = super().apply(model, plan)
        encoder = wrapped.prompt_encoder["default"]
        encoder.forward = MethodType(_in_float32, encoder)
        return wrapped  # type: ignore[no-any-return]

    def save(self, model: nn.Module, folder: Path) -> None:
        import torch

        with torch.no_grad():  # with a gradient, an LSTM takes another way, and its last digits differ
            super().save(model, folder)

    def load(self, base: PreTrainedModel, folder: Path, *, trainable: bool = False) -> PeftModel:
        model = super().load(base, folder)  # PEFT loads virtual tokens for inference only
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable and ("prompt_encoder." in name or ".modules_to_save." in name))
        return model

    @contextlib.contextmanager
    def disabled(self, model: nn.Module) -> Iterator[None]:
        wrapped: Any = model
        # PEFT's own way, disable_adapter, fails where the base cannot generate.
        wrapped.forward, wrapped._adapters_disabled = wrapped.base_model.forward, True
        try:
            yield
        finally:
            del wrapped.forward
            wrapped._adapters_disabled = False


class EmbeddedTokens(VirtualTokens):
    """Virtual tokens that enter as embeddings, through every layer, so that outputs are longer than inputs by them."""

    def incompatible_with(self, setting: MethodContext) -> str | None:
        if setting.task_type == "SEQ_CLS" and setting.architecture in LAST_TOKEN:
            return _no_pooling(self.title, setting.architecture)
        return no_answers(self.title, setting) or super().incompatible_with(setting)

    def apply(self, model: PreTrainedModel, plan: TrainingPlan) -> PeftModel:
        if plan.task_type == "SEQ_CLS" and {"score", "classification_head"}.intersection(plan.head):
            raise UserError(f"method: {_no_pooling(self.title, model.config.model_type)}")
        return _without_virtual_outputs(super().apply(model, plan))

    def load(self, base: PreTrainedModel, folder: Path, *, trainable: bool = False) -> PeftModel:
        return _without_virtual_outputs(super().load(base, folder, trainable=trainable))


def _in_float32(encoder: nn.Module, tokens: Tensor) -> Tensor:
    """What makes the virtual tokens, without autocast: they are saved as float32, and an LSTM has no CPU bfloat16."""
    import torch

    with torch.autocast(tokens.device.type, enabled=False):
        return type(encoder).forward(encoder, tokens)  # type: ignore[no-any-return]


def embedded_shape(model: PreTrainedModel) -> dict[str, Any]:
    """What PEFT would not find in every config. Embeddings are not as wide as layers in ALBERT and small ELECTRAs."""
    embeddings: Any = model.get_input_embeddings()
    return {
        "num_transformer_submodules": 1,  # of an encoder-decoder's two, PEFT would make tokens that nobody reads
        "num_layers": model.config.num_hidden_layers,
        "num_attention_heads": model.config.num_attention_heads,
        "token_dim": embeddings.weight.shape[1],
    }


def text_tokens(text: str, length: int, plan: TrainingPlan) -> list[int]:
    """`length` token ids of the text, cut or repeated."""
    if plan.tokenize is None:
        raise UserError("method.initial_text: this run has no tokenizer")
    ids = plan.tokenize(text)
    if not ids:
        raise UserError(f"method.initial_text: {text!r} has no tokens")
    return (ids * (length // len(ids) + 1))[:length]


def _check_positions(model: PreTrainedModel, length: int, longest_input: int | None) -> None:
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None or longest_input is None:
        return
    tables = [
        m for name, m in model.named_modules() if name.endswith("position_embeddings") and hasattr(m, "padding_idx")
    ]
    if tables and tables[0].padding_idx is not None:
        positions -= tables[0].padding_idx + 1  # RoBERTa's positions start after the padding token's
    if longest_input + length > positions:
        raise UserError(
            f"method.length: {length} virtual tokens and the longest input's {longest_input} need "
            f"{longest_input + length} positions, but {model.config.model_type} has {positions}; "
            f"set task.max_length to at most {positions - length}"
        )


def no_answers(title: str, setting: MethodContext) -> str | None:
    """Why virtual tokens cannot be had in this question answering, if they cannot."""
    if setting.task_type != "QUESTION_ANS" or setting.architecture not in ENCODER_DECODERS:
        return None
    return (
        f"{title} cannot answer questions with {setting.architecture}, whose decoder reads the input once more and "
        "without virtual tokens; use lora"
    )


def _no_pooling(title: str, architecture: str) -> str:
    return (
        f"{title} cannot classify sequences with {architecture}, which looks for the end of the text in the token ids, "
        "and sees embeddings instead; use prefix_tuning or lora"
    )


def _without_virtual_outputs(model: PeftModel) -> PeftModel:
    """PEFT leaves the virtual tokens' logits in front of the others; whoever has labels for tokens wants them gone."""
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
