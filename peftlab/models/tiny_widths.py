"""Narrow widths, few heads and few experts in a config, with the products of them that an architecture needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftlab.models.tiny_layers import is_integer

# Names that architectures use in config.json for the same quantity; the first that a config has is the one that counts.
WIDTHS = (
    *("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_dim", "pooler_hidden_size"),
    *("decoder_hidden_size", "audio_hidden_size", "hidden_size_global", "adapter_in_dim", "adapter_input_size"),
    *("adapter_out_dim", "out_hidden_size", "output_dim", "cross_attention_hidden_size", "embed_dim_out"),
)
INNER_WIDTHS = re.compile(
    r"(intermediate_size(_mlp)?|d_ff|n_inner|hidden_dim|ffn_dim|ffn_hidden_size|d_inner|^dff|dim_ff|feed_forward_size"
    r"|mlp_dim|_lora_rank|attention_hidden_size|lru_width|d_latents|^qk_channels|ple_embed_dim|hc_lowrank"
    r"|time_step_rank|dt_rank|hidden_size_per_layer_input|d_ssm|kv_hidden_size|axial_pos_embds_dim)$"
)
"""Widths within a layer: scaled with the hidden size."""
EMBEDDING_WIDTHS = ("embedding_size", "word_embed_proj_dim", "input_embedding_size", "output_embedding_size")
HEADS = ("num_attention_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads", "decoder_attention_heads")
ANY_HEADS = re.compile(
    r"^(?!.*(key|value|kv|index|mamba|linear)).*(attention_heads|num_heads|n_heads?|_heads_per_layer)$"
)
KEY_HEADS = re.compile(r"(key_value_heads|kv_heads|kv_n_heads)$")
HEAD_WIDTHS = re.compile(r"^(swa_|attention_)?(head_dim|d_kv|d_head|dim_head|attention_head_size|kv_channels)$")
COORDINATES = ("coordinate_size", "shape_size")
"""Widths of which six make the hidden size."""
PAIRS = (
    *(("mamba_n_heads", "mamba_d_head"), ("mamba_num_heads", "mamba_head_dim"), ("n_mamba_heads", "mamba_headdim")),
    *(("linear_num_heads", "linear_head_dim"), ("linear_num_value_heads", "linear_value_head_dim")),
    ("linear_num_key_heads", "linear_key_head_dim"),
)
"""Heads of state-space and linear attention with the width of each; their product is scaled with the hidden size."""
STATES = re.compile(r"^(state_size|ssm_state_size|mamba_d_state)$")
EXPERTS = re.compile(r"^(moe_)?(num|n)_(local_|routed_|shared_)?experts$|^zero_expert_num$")
EXPERTS_PER_TOKEN = re.compile(r"(experts_per_tok(en)?|moe_k|moe_top_?k|num_selected_experts)$")
FEWEST = {"n_group": 2, "num_expert_group": 2, "topk_group": 1, "n_groups": 2, "mamba_n_groups": 2, "mamba_ngroups": 2}
FEWEST |= {"o_groups": 2, "index_n_heads": 4, "moe_num_shared_experts": 1, "attention_window": 64}
"""Most of each that a tiny model has."""
NESTED = re.compile(r"(_config|^encoder|^decoder|_encoder)$")
"""Keys with the config of a part of the model."""


@dataclass(frozen=True)
class Scale:
    """How much narrower a config becomes."""

    real: int
    """Hidden size of the config."""
    width: int
    """Hidden size of the tiny model."""
    heads: int
    """Attention heads of the config."""

    @property
    def narrows(self) -> bool:
        return self.real > self.width

    def of(self, value: int) -> int:
        """A width in proportion, a multiple of 32."""
        return self.width if value == self.real else max(32, value * self.width // self.real // 32 * 32)


def scale_of(config: Mapping[str, Any], width: int, parent: Scale | None = None) -> Scale:
    """The scale of a config; a part without a hidden size of its own has that of its parent."""
    if "max_2d_position_embeddings" in config:  # the places of a page: the hidden size is a multiple of 6
        width = width * 3 // 4
    if "ffn_round_up_to_multiple_of" in config:  # xLSTM rounds the width of all keys up to 64
        width = max(width, 128)
    real = next((config[key] for key in WIDTHS if is_integer(config.get(key))), parent.real if parent else width)
    heads = next((config[key] for key in HEADS if is_integer(config.get(key))), parent.heads if parent else 4)
    return Scale(real, width, heads)


def narrow(config: Mapping[str, Any], scale: Scale) -> dict[str, Any]:
    """Values of the keys that change if the model is narrow and has few experts. Nested configs are not looked into."""
    small = {key: _narrowed(key, value, scale) for key, value in config.items()}
    if scale.narrows:
        small |= _pairs(config, scale) | _latent_attention(config, scale) | _rotary(config, small)
    return {key: value for key, value in small.items() if value != config[key]}


def _narrowed(key: str, value: Any, scale: Scale) -> Any:
    """The value of one key, item by item if there is one per layer."""
    if isinstance(value, (list, tuple)) and value and all(is_integer(item) for item in value):
        return [_narrowed(key, item, scale) for item in value] if not key.endswith("token_id") else value
    if not is_integer(value):
        return value
    if EXPERTS.search(key):
        return min(value, 1 if "shared" in key else 4)
    if EXPERTS_PER_TOKEN.search(key):
        return min(value, 2)
    if key in FEWEST:
        return min(value, FEWEST[key])
    if STATES.search(key):
        return min(value, 32)
    if key in WIDTHS and not scale.narrows:  # of another part
        return min(value, scale.width)
    return _narrowed_width(key, value, scale) if scale.narrows else value


def _narrowed_width(key: str, value: int, scale: Scale) -> int:
    width = scale.width
    if key in COORDINATES:
        return value * width // scale.real
    if key in WIDTHS:
        return width
    if INNER_WIDTHS.search(key):
        return scale.of(value) if value else value
    if key in EMBEDDING_WIDTHS:
        return width if value == scale.real else width // 2
    if KEY_HEADS.search(key):
        return {scale.heads: 4, 1: 1}.get(value, 2)
    if ANY_HEADS.search(key):
        return 4
    if HEAD_WIDTHS.search(key):
        return width // 4 if value * scale.heads == scale.real else width // 2
    return value


def _pairs(config: Mapping[str, Any], scale: Scale) -> dict[str, int]:
    """Heads of state-space and linear attention, and the width of each."""
    small: dict[str, int] = {}
    for heads_key, width_key in PAIRS:
        heads, head_width = config.get(heads_key), config.get(width_key)
        if not is_integer(heads):
            continue
        small[heads_key] = 2 if "key" in heads_key and heads != config.get("linear_num_value_heads") else min(heads, 4)
        if is_integer(head_width):
            small[width_key] = max(4, heads * head_width * scale.width // scale.real // small[heads_key])
            if config.get("mamba_d_ssm") == heads * head_width:
                small["mamba_d_ssm"] = small[heads_key] * small[width_key]
    return small


def _latent_attention(config: Mapping[str, Any], scale: Scale) -> dict[str, int]:
    """Head widths of DeepSeek's latent attention: a part with positions, one without, values, and sums of them."""
    if not is_integer(config.get("qk_rope_head_dim")):
        return {"index_head_dim": scale.width // 4} if is_integer(config.get("index_head_dim")) else {}
    unit = max(16, scale.width // 8)
    rope = config["qk_rope_head_dim"]
    dims = {rope: unit // 2}
    for key in ("qk_nope_head_dim", "v_head_dim"):
        if is_integer(config.get(key)) and config[key]:
            dims.setdefault(config[key], unit if config[key] > rope else unit // 2)
    nope = config.get("qk_nope_head_dim")
    if is_integer(nope) and nope:
        dims.setdefault(rope + nope, dims[rope] + dims[nope])
    keys = ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "qk_head_dim", "head_dim", "index_head_dim")
    return {key: dims.get(config[key], 2 * unit) for key in keys if is_integer(config.get(key)) and config[key]}


def _rotary(config: Mapping[str, Any], small: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings with one value per rotated pair of a head: `rotary_dim`, `short_factor`, `mrope_section`."""
    old, new = (_head_width(values) for values in (config, small))
    changed: dict[str, Any] = {}
    if old is None or new is None or new >= old:
        return changed
    if is_integer(config.get("rotary_dim")):
        changed["rotary_dim"] = max(2, config["rotary_dim"] * new // old // 2 * 2)
    for key in ("rope_parameters", "rope_scaling"):
        if isinstance(config.get(key), Mapping):
            changed[key] = _scaled_factors(config[key], new, old)
    return changed


def _scaled_factors(values: Mapping[str, Any], new: int, old: int) -> dict[str, Any]:
    scaled: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            scaled[key] = _scaled_factors(value, new, old)
        elif key in ("short_factor", "long_factor") and isinstance(value, (list, tuple)):
            scaled[key] = list(value[: max(1, len(value) * new // old)])
        elif key == "mrope_section" and isinstance(value, (list, tuple)):
            parts = [part * new // old for part in value]
            scaled[key] = [parts[0] + sum(value) * new // old - sum(parts), *parts[1:]]
        else:
            scaled[key] = value
    return scaled


def _head_width(config: Mapping[str, Any]) -> int | None:
    """Width of an attention head, or None if the config does not have it."""
    if is_integer(config.get("head_dim")):
        return int(config["head_dim"])
    width = next((config[key] for key in WIDTHS if is_integer(config.get(key))), None)
    heads = next((config[key] for key in HEADS if is_integer(config.get(key))), None)
    return width // heads if width and heads else None
