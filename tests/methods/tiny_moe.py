"""Tiny mixtures of experts: two layers of width 32 with four experts; some with shared experts and a dense layer."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

COMMON = {
    **{"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "head_dim": 16},
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_experts_per_tok": 2},
}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16}
ROUTED = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 24}
SHARED = {**ROUTED, "n_shared_experts": 1, "first_k_dense_replace": 1}
LINEAR_ATTENTION = {
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    **{"layer_types": ["linear_attention", "full_attention"], "shared_expert_intermediate_size": 24},
}
EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "gpt_oss": {"num_local_experts": 4, "layer_types": ["full_attention"] * 2, "rope_parameters": None},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 24},
    "qwen3_next": {"num_experts": 4, "moe_intermediate_size": 24, **LINEAR_ATTENTION},
    "deepseek_v3": {**SHARED, **LATENT},
    "glm4_moe": SHARED,
    "granitemoe": {"num_local_experts": 4},
    "llama4_text": {"num_local_experts": 4, "intermediate_size_mlp": 48},
}
"""Settings of each architecture that the common ones do not cover."""
ONE_EXPERT_PER_TOKEN = {"llama4_text"}


def tiny_moe(architecture: str, *, seed: int = 0) -> PreTrainedModel:
    """A causal language model with the same random weights for the same seed."""
    settings = {**COMMON, **EXPERTS[architecture]}
    if architecture in ONE_EXPERT_PER_TOKEN:
        settings["num_experts_per_tok"] = 1
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **settings))
    return model.requires_grad_(False).eval()


def sentences(seed: int = 1) -> torch.Tensor:
    """Token ids (2, 12)."""
    return torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(seed))
