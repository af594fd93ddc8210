"""Prefix tuning (Li & Liang, 2021): trainable key-value vectors before the input, in every attention layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from peftlab.component import Reference
from peftlab.errors import UserError
from peftlab.methods.method import Method, MethodContext, TrainingPlan
from peftlab.methods.virtual_tokens import VirtualTokens, question_answering_conflict, text_tokens
from peftlab.models.cache_shape import decoder_prefix, decoder_shape
from peftlab.models.facts import facts_of

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import nn
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache


class PrefixTuning(VirtualTokens):
    """Trains key and value vectors that every attention layer reads before the input (Li & Liang, 2021).

    There are 2 * layers * length * key width parameters, or with `projection` a network that computes them. Only the
    vectors are saved.
    """

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
        "in encoder-decoders (T5, BART) the prefix is added only to the decoder's self-attention "
        "(paper: the encoder and cross-attention too); no projection by default, as in P-tuning v2"
    )
    learning_rate: ClassVar[float] = 5e-3
    test_settings: ClassVar[tuple[dict[str, Any], ...]] = ({"length": 4}, {"length": 4, "projection": True})

    projection: bool = False
    """Compute keys and values with a two-layer network during training, as in the paper."""
    projection_width: int | None = Field(None, ge=1, examples=[512])
    """Hidden units of the projection; the key width by default."""
    initial_text: str | None = Field(None, examples=["Tag the names in this sentence."])
    """Initialize with the base model's keys and values for this text, cut or repeated to `length` tokens."""

    @model_validator(mode="after")
    def _text_or_projection(self) -> Self:
        if self.initial_text is not None and self.projection:
            raise ValueError("initial_text: a projection cannot be initialized to given keys and values; use only one")
        return self

    def incompatible_with(self, context: MethodContext) -> str | None:
        architecture = context.architecture
        if (conflict := question_answering_conflict(self.title, context)) is not None:
            return conflict
        if architecture is not None:
            facts = facts_of(architecture)
            if facts.encoder_decoder and context.task_type == "SEQ_CLS":
                return f"PEFT extends the encoder's mask for a prefix that is in {architecture}'s decoder; use lora"
            if facts.encoder_decoder and context.dispatched:
                return f"PEFT places a prefix by the encoder's layers, and {architecture}'s decoder reads it; use lora"
            if (reason := facts.no_prefix.get(context.task_type)) is not None:
                return f"prefix tuning needs past key-values, which {architecture} does not accept: {reason}; use lora"
        if context.gradient_checkpointing:
            return "prefix tuning cannot train with gradient checkpointing, whose second forward pass lacks the prefix"
        return super().incompatible_with(context)

    def cannot_start_from(self, earlier: Method) -> str | None:
        projection = "a prefix with projection is saved without the network that made it; set projection: false in both"
        return super().cannot_start_from(earlier) or (projection if self.projection else None)

    def config(self, model: PreTrainedModel, plan: TrainingPlan) -> PeftConfig:
        from peft import PrefixTuningConfig

        return PrefixTuningConfig(
            task_type=plan.task_type,
            num_virtual_tokens=self.length,
            prefix_projection=self.projection,
            encoder_hidden_size=self.projection_width,  # type: ignore[arg-type]  # None is PEFT's own default
            modules_to_save=list(plan.head) or None,
            **decoder_shape(model),
        )

    def apply(self, model: PreTrainedModel, plan: TrainingPlan) -> PeftModel:
        reason = self.incompatible_with(
            MethodContext(
                architecture=model.config.model_type,
                quantization="none",
                task_type=plan.task_type,
                gradient_checkpointing=_uses_gradient_checkpointing(model),
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
            wrapped.get_prompt = decoder_prefix(wrapped)  # type: ignore[method-assign,assignment]
        return wrapped

    def save(self, model: nn.Module, folder: Path) -> None:
        super().save(model, folder)
        if model.config.is_encoder_decoder:  # type: ignore[union-attr]
            _rewrite_for_peft(folder)

    def stats(self, model: nn.Module) -> dict[str, Any]:
        encoder_decoder = model.config.is_encoder_decoder  # type: ignore[union-attr]
        return {"reaches": "decoder self-attention" if encoder_decoder else "self-attention"}


def _rewrite_for_peft(folder: Path) -> None:
    """Rewrite what was saved so that PEFT gives each decoder layer its own prefix.

    PEFT assigns four vectors to each layer and discards the last two, meant for cross-attention: they are zeros here.
    It also splits the vectors over encoder and decoder, so `num_layers` in the config is twice the decoder's.
    """
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    prefix = tensors["prompt_embeddings"].view(config["num_virtual_tokens"], config["num_layers"], -1)
    tensors["prompt_embeddings"] = torch.cat([prefix, torch.zeros_like(prefix)], dim=2).flatten(1)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config |= {"num_layers": 2 * config["num_layers"], "num_transformer_submodules": 2}
    path.write_text(json.dumps(config, indent=2, sort_keys=True))


def _uses_gradient_checkpointing(model: nn.Module) -> bool:
    """True if transformers recomputes activations. Its own property has a different name in each major version."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def _keys_and_values(model: PreTrainedModel, ids: list[int]) -> Cache:
    """Keys and values of the token ids in every self-attention layer, the decoder's in an encoder-decoder."""
    import torch
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    tokens = torch.tensor([ids], device=model.device)
    cache = DynamicCache(config=model.config) if not model.config.is_encoder_decoder else DynamicCache()
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            pair = EncoderDecoderCache(cache, DynamicCache())
            model(input_ids=tokens, decoder_input_ids=tokens, past_key_values=pair, use_cache=True)
        else:
            model.base_model(input_ids=tokens, past_key_values=cache, use_cache=True)
    return cache
