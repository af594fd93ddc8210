"""Key-values from outside in an encoder-decoder: their sizes, and the cache that holds them."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers.cache_utils import Cache


def has_decoder(model: nn.Module) -> bool:
    """True if the model has a decoder next to its encoder."""
    return any(name.rpartition(".")[2] == "decoder" for name, _ in model.named_modules())


def decoder_shape(model: nn.Module) -> dict[str, Any]:
    """Sizes of the decoder for PEFT's config. PEFT would use the encoder's, and assume heads of width / heads."""
    config: Any = model.config
    if not config.is_encoder_decoder:
        return {}
    heads = getattr(config, "decoder_attention_heads", None) or config.num_attention_heads
    return {
        "num_transformer_submodules": 1,
        "num_layers": getattr(config, "num_decoder_layers", None) or config.decoder_layers,
        "num_attention_heads": heads,
        "token_dim": heads * getattr(config, "d_kv", config.d_model // heads),
    }


def decoder_prefix(model: PeftModel) -> Callable[..., Cache]:
    """Replacement for `get_prompt` of this model: the prefix is the decoder's alone.

    PEFT would share one prefix between two layers, and train as many parameters again that no layer uses.
    """
    return MethodType(_decoder_prefix, model)


def _decoder_prefix(model: PeftModel, *args: Any, **kwargs: Any) -> Cache:
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    return EncoderDecoderCache(type(model).get_prompt(model, *args, **kwargs), DynamicCache())
