"""Tiny models of any architecture: two layers, narrow, with a byte-level tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import transformers

from peftlab.errors import UserError, nearest

VOCABULARY = 512
FIRST_BYTE = 256
"""Token id of byte 0. Special tokens have smaller ids."""
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'][0] + ':' + message['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
# Names that architectures use in config.json for the same quantity.
LAYERS = (
    *("num_hidden_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers"),
    *("n_layer", "n_layers"),
)
WIDTHS = ("hidden_size", "d_model", "n_embd", "dim", "pooler_hidden_size")
INNER_WIDTHS = ("intermediate_size", "d_ff", "n_inner", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim")
EMBEDDING_WIDTHS = ("embedding_size", "word_embed_proj_dim")
HEADS = ("num_attention_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads", "decoder_attention_heads")
KEY_HEADS = ("num_key_value_heads", "num_kv_heads")
HEAD_WIDTHS = ("head_dim", "d_kv")


def small_config(shape: Mapping[str, Any], width: int) -> Any:
    """Config of the same architecture, at most `width` wide and with two layers. Raises UserError if it is unknown."""
    values = dict(shape)
    architecture = values.pop("model_type")
    try:
        full = transformers.AutoConfig.for_model(architecture, **values)
    except (KeyError, ValueError):
        hint = nearest(architecture, transformers.CONFIG_MAPPING)
        raise UserError(f"model: transformers has no architecture {architecture!r}{hint}") from None
    return smaller(full, width)


def smaller(config: Any, width: int) -> Any:
    """Config of the same class, at most `width` wide and with two layers."""
    small = shrink(config.to_dict(), width)
    del small["model_type"]
    return type(config).from_dict(small)


def shrink(config: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Smaller values for a config.json. Grouped heads, factorized embeddings and unusual head widths are preserved.

    >>> big = {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8}
    >>> shrink(big, 64)
    {'hidden_size': 64, 'num_hidden_layers': 2, 'num_attention_heads': 4, 'num_key_value_heads': 2}
    """
    small = dict(config)
    for key, value in config.items():
        if key in LAYERS and isinstance(value, int):
            small[key] = min(value, 2)
        elif key.endswith("token_id") and isinstance(value, int):
            small[key] = min(value, FIRST_BYTE - 1)
        elif key.endswith("token_id") and isinstance(value, list):
            small[key] = [min(token, FIRST_BYTE - 1) for token in value]
    if "vocab_size" in config:
        small["vocab_size"] = VOCABULARY
    if config.get("layer_types"):
        small["layer_types"] = _two_of(config["layer_types"])
    if config.get("attention_types"):  # GPT-Neo: [[types, repetitions]]
        small["attention_types"] = [[config["attention_types"][0][0], 1]]
    return small | _narrow(config, width)


def _narrow(config: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Values of the keys that depend on the width, if the model is wider than `width`."""
    real = next((config[key] for key in WIDTHS if isinstance(config.get(key), int)), width)
    if real <= width:
        return {}
    heads = next((config[key] for key in HEADS if isinstance(config.get(key), int)), 4)
    narrow: dict[str, Any] = {}
    for key, value in config.items():
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        if key in WIDTHS:
            narrow[key] = width
        elif key in INNER_WIDTHS:
            narrow[key] = max(32, value * width // real // 32 * 32)
        elif key in EMBEDDING_WIDTHS:
            narrow[key] = width if value == real else width // 2
        elif key in HEADS:
            narrow[key] = 4
        elif key in KEY_HEADS:
            narrow[key] = {heads: 4, 1: 1}.get(value, 2)
        elif key in HEAD_WIDTHS:
            narrow[key] = width // 4 if value * heads == real else width // 2
    return narrow


def byte_tokenizer(config: Any) -> transformers.PreTrainedTokenizerFast:
    """Tokenizer with one token per byte, so that every text has tokens and words have several.

    For an encoder-decoder it appends the end-of-sequence token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    padding = config.pad_token_id if isinstance(getattr(config, "pad_token_id", None), int) else 0
    eos = config.eos_token_id if isinstance(getattr(config, "eos_token_id", None), int) else None
    free = [number for number in range(FIRST_BYTE) if number not in (padding, eos)]
    names = {
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "mask_token": "<mask>",
    }
    vocabulary = dict(zip(names.values(), [padding, *free], strict=False))
    if eos is not None and eos != padding:
        vocabulary[names["eos_token"]] = eos
    vocabulary |= {letter: FIRST_BYTE + number for number, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    if config.is_encoder_decoder:
        eos_token = names["eos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {eos_token}",
            pair=f"$A {eos_token} $B {eos_token}",
            special_tokens=[(eos_token, vocabulary[eos_token])],
        )
    segments = getattr(config, "type_vocab_size", None) or 0
    inputs = ["input_ids", *(["token_type_ids"] if segments > 1 else []), "attention_mask"]
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _two_of(kinds: Sequence[str]) -> list[str]:
    """Types of two layers, different ones if there are several.

    >>> _two_of(["sliding", "sliding", "full"]), _two_of(["full", "full"])
    (['sliding', 'full'], ['full', 'full'])
    """
    return [*dict.fromkeys(kinds), kinds[0]][:2]
