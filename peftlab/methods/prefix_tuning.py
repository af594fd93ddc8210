"""Prefix tuning (Li & Liang, 2021): trained keys and values before the input's, in every layer."""

from __future__ import annotations

import json
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from peftlab.component import Reference
from peftlab.errors import UserError
from peftlab.methods.method import MethodContext, TrainingPlan
from peftlab.methods.virtual_tokens import ENCODER_DECODERS, VirtualTokens, no_answers, text_tokens

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import nn
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache

# Their attention takes no keys and values from outside.
CLOSED = {"albert", "deberta", "deberta-v2", "distilbert", "falcon", "modernbert"}


class PrefixTuning(VirtualTokens):
    """2 * layers * length * key width parameters, or a network that makes them, which is gone once they are saved."""

    kind: Literal["prefix_tuning"] = "prefix_tuning"
    title: ClassVar[str] = "prefix tuning"
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            key="li2021prefix",
            author="Li, Xiang Lisa and Liang, Percy",
            title="Prefix-Tuning: Optimizing Continuous Prompts for Generation",
            year=2021,
            arxiv="2101.00190",
        ),
    )
    fidelity: ClassVar[str | None] = (
        "in encoder-decoders (T5, BART) the prefix reaches the decoder's self-attention alone "
        "(paper: the encoder and cross-attention too); without projection by default, as in P-tuning v2"
    )
    learning_rate: ClassVar[float] = 5e-3
    test_settings: ClassVar[tuple[dict[str, Any], ...]] = ({"length": 4}, {"length": 4, "projection": True})

    projection: bool = False  # make keys and values by a two-layer network, as the paper does
    projection_width: int | None = Field(None, ge=1)  # hidden units of it; the key width if not given
    initial_text: str | None = None  # keys and values that the base gives this text, cut or repeated to length

    @model_validator(mode="after")
    def _text_or_projection(self) -> Self:
        if self.initial_text is not None and self.projection:
            raise ValueError("initial_text: a projection cannot be made to give its keys and values; use one of them")
        return self

    def incompatible_with(self, setting: MethodContext) -> str | None:
        if setting.architecture in CLOSED:
            return f"prefix tuning gives attention keys and values from outside, and {setting.architecture} takes none"
        if setting.architecture in ("t5", "mt5") and setting.task_type == "TOKEN_CLS":
            return "prefix tuning reaches T5's decoder, and its token classifier has none; use lora"
        if no_answers(self.title, setting) is not None:
            return no_answers(self.title, setting)
        if setting.architecture in ENCODER_DECODERS and setting.task_type == "SEQ_CLS":
            return f"PEFT masks the encoder's input for a prefix that {setting.architecture}'s decoder has; use lora"
        if setting.gradient_checkpointing:
            return "prefix tuning does not train with gradient checkpointing, whose second forward misses the prefix"
        return super().incompatible_with(setting)

    def config(self, model: PreTrainedModel, plan: TrainingPlan) -> PeftConfig:
        from peft import PrefixTuningConfig

        return PrefixTuningConfig(
            task_type=plan.task_type,
            num_virtual_tokens=self.length,
            prefix_projection=self.projection,
            encoder_hidden_size=self.projection_width,  # type: ignore[arg-type]  # None is PEFT's own default
            modules_to_save=list(plan.head) or None,
            **_decoder_shape(model),
        )

    def apply(self, model: PreTrainedModel, plan: TrainingPlan) -> PeftModel:
        reason = self.incompatible_with(
            MethodContext(
                architecture=model.config.model_type,
                quantization="none",
                task_type=plan.task_type,
                gradient_checkpointing=_checkpoints(model),
            )
        )
        if reason is not None:
            raise UserError(f"method: {reason}")
        cache = None
        if self.initial_text is not None:
            cache = _keys_and_values(model, text_tokens(self.initial_text, self.length, plan))
        wrapped = super().apply(model, plan)
        if cache is not None:
            from peft.tuners.cartridge.utils import initialize_kv_prefix_from_past_key_values

            initialize_kv_prefix_from_past_key_values(wrapped, past_key_values=cache)
        if model.config.is_encoder_decoder:
            # PEFT would give every two layers one prefix, and train as much again that no layer has.
            wrapped.get_prompt = MethodType(_decoder_prefix, wrapped)  # type: ignore[method-assign]
        return wrapped

    def save(self, model: nn.Module, folder: Path) -> None:
        super().save(model, folder)
        if model.config.is_encoder_decoder:  # type: ignore[union-attr]
            _as_peft_reads(folder)

    def stats(self, model: nn.Module) -> dict[str, Any]:
        both = model.config.is_encoder_decoder  # type: ignore[union-attr]
        return {"reaches": "decoder self-attention" if both else "self-attention"}


def _decoder_shape(model: PreTrainedModel) -> dict[str, Any]:
    """What PEFT takes from the encoder of an encoder-decoder, or gets wrong where heads are not width / heads wide."""
    config = model.config
    if not config.is_encoder_decoder:
        return {}
    heads = getattr(config, "decoder_attention_heads", None) or config.num_attention_heads
    return {
        "num_transformer_submodules": 1,
        "num_layers": getattr(config, "num_decoder_layers", None) or config.decoder_layers,
        "num_attention_heads": heads,
        "token_dim": heads * getattr(config, "d_kv", config.d_model // heads),
    }


def _decoder_prefix(model: PeftModel, *args: Any, **kwargs: Any) -> Cache:
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    return EncoderDecoderCache(type(model).get_prompt(model, *args, **kwargs), DynamicCache())


def _as_peft_reads(folder: Path) -> None:
    """Rewrite what was saved so that PEFT gives each decoder layer its own prefix.

    It deals four vectors a layer, the last two for cross-attention, and discards those: they are zeros here. And it
    deals all vectors twice, so that it is told of twice the layers.
    """
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    own = tensors["prompt_embeddings"].view(config["num_virtual_tokens"], config["num_layers"], -1)
    tensors["prompt_embeddings"] = torch.cat([own, torch.zeros_like(own)], dim=2).flatten(1)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config |= {"num_layers": 2 * config["num_layers"], "num_transformer_submodules": 2}
    path.write_text(json.dumps(config, indent=2, sort_keys=True))


def _checkpoints(model: nn.Module) -> bool:
    """Whether transformers recomputes activations; its own property for it has another name in each major version."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def _keys_and_values(model: PreTrainedModel, ids: list[int]) -> Cache:
    """What the base's self-attention makes of the tokens, layer by layer; the decoder's if there are two."""
    import torch
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    tokens = torch.tensor([ids], device=model.device)
    own = DynamicCache(config=model.config) if not model.config.is_encoder_decoder else DynamicCache()
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            both = EncoderDecoderCache(own, DynamicCache())
            model(input_ids=tokens, decoder_input_ids=tokens, past_key_values=both, use_cache=True)
        else:
            model.base_model(input_ids=tokens, past_key_values=own, use_cache=True)
    return own
