"""Tiny models of any architecture: few layers, narrow, few experts, and no more than a bounded number of parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import transformers

from peftlab.errors import UserError, nearest
from peftlab.models.byte_tokenizer import FIRST_BYTE
from peftlab.models.tiny_bound import bounded, probing
from peftlab.models.tiny_layers import cut_layers
from peftlab.models.tiny_widths import NESTED, Scale, narrow, scale_of

VOCABULARY = 512
VOCABULARIES = re.compile(r"^((src_|tgt_|decoder_)?vocab_size(_per_layer_input)?|n_words)$")
"""Keys with the number of tokens that the model reads or writes."""
OTHER_VOCABULARIES = re.compile(
    r"(?<!type)_vocab(_size)?$|^(codebook_size|num_hash_buckets|ngram_vocab_size_base|unpadded_vocab_size)$"
)
"""Keys with the sizes of other tables: entities, characters, hashes."""
TOKEN = re.compile(r"token_(id|index)$")
MODALITY = re.compile(r"image|vision|video|audio|speech|[be]o[iav]_")
"""Part of the keys with tokens that stand for something other than text."""


def small_config(shape: Mapping[str, Any], width: int) -> Any:
    """Config of the same architecture, at most `width` wide and with few layers.

    Raises UserError if the architecture is unknown, and NotProbed if it has no small model.
    """
    values = dict(transformers.PretrainedConfig._decode_special_floats(dict(shape)))  # as from_pretrained does
    architecture = values.pop("model_type")
    try:
        config_class = transformers.CONFIG_MAPPING[architecture]
    except KeyError:
        hint = nearest(architecture, transformers.CONFIG_MAPPING)
        raise UserError(f"model: transformers has no architecture {architecture!r}{hint}") from None
    with probing(f"transformers' config of {architecture} refuses these values"):
        full = config_class.from_dict(values)
    if full.is_encoder_decoder and getattr(full, "decoder_start_token_id", None) is None:
        full.decoder_start_token_id = getattr(full, "pad_token_id", None)  # as in the configs that T5 publishes
    return smaller(full, width)


def smaller(config: Any, width: int) -> Any:
    """Config of the same class, at most `width` wide, with few layers and parameters. Raises NotProbed."""
    values = config.to_dict()
    return bounded(type(config), lambda width: shrink(values, width), width)


def shrink(config: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Smaller values for a config.json and all configs in it.

    Grouped heads, factorized embeddings and unusual head widths are preserved.

    >>> big = {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8}
    >>> shrink(big, 64)
    {'hidden_size': 64, 'num_hidden_layers': 2, 'num_attention_heads': 4, 'num_key_value_heads': 2}
    """
    return _shrink(config, width, None)


def _shrink(config: Mapping[str, Any], width: int, parent: Scale | None) -> dict[str, Any]:
    scale = scale_of(config, width, parent)
    small = {key: value for key, value in {**config, **cut_layers(config)}.items() if key != "quantization_config"}
    small |= narrow(small, scale)
    for key, value in small.items():
        if key == "per_layer_config" and isinstance(value, Mapping):
            small[key] = {layer: _of_layer(config, small, settings, width) for layer, settings in value.items()}
        elif isinstance(value, Mapping) and NESTED.search(key):
            small[key] = _shrink(value, width, scale)
        else:
            small[key] = _fewer_tokens(key, value)
    return small


def _of_layer(
    config: Mapping[str, Any], small: Mapping[str, Any], settings: Mapping[str, Any], width: int
) -> dict[str, Any]:
    """Settings of one layer that differ from those of the model: `small` in place of `config`."""
    whole = {**config, **settings}
    narrowed = {**settings, **narrow(whole, scale_of(whole, width))}
    return {key: value for key, value in narrowed.items() if key in settings or value != small.get(key)}


def _fewer_tokens(key: str, value: Any) -> Any:
    """The value of one key, if it is the size of a vocabulary or the id of a token."""
    if TOKEN.search(key):
        last = FIRST_BYTE - (2 if MODALITY.search(key) else 1)
        if isinstance(value, int):
            return min(value, last)
        return [min(token, last) for token in value] if isinstance(value, list) else value
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if VOCABULARIES.search(key):
        return VOCABULARY
    return min(value, VOCABULARY) if OTHER_VOCABULARIES.search(key) else value
