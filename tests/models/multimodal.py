"""Tiny multimodal base models with random weights, one of each way to arrange towers and text branch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from peftlab.models.byte_tokenizer import byte_tokenizer
from peftlab.models.text_branch import TEXT, auto_class

TEXT_CONFIG = {
    **{"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
VISION = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"image_size": 28, "patch_size": 14},
}
QWEN_VISION = {"depth": 2, "num_heads": 2, "patch_size": 14}
SECTIONS = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}}
CONFIGS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": {"layer_types": ["sliding_attention", "full_attention"]},
        "vision_config": VISION,
        "mm_tokens_per_image": 4,
    },
    "idefics3": {"text_config": {"model_type": "llama"}, "vision_config": VISION},
    "llava": {
        "text_config": {"model_type": "llama"},
        "vision_config": {**VISION, "model_type": "clip_vision_model", "projection_dim": 32},
    },
    "mistral3": {
        "text_config": {"model_type": "ministral3"},
        "vision_config": {**VISION, "model_type": "pixtral", "head_dim": 16},
    },
    "qwen2_vl": {
        "text_config": SECTIONS,
        "vision_config": {**QWEN_VISION, "embed_dim": 32, "mlp_ratio": 2, "hidden_size": 64},
    },
    "qwen3_vl": {
        "text_config": SECTIONS,
        "vision_config": {
            **{**QWEN_VISION, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64},
            **{"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        },
    },
}


def config(architecture: str) -> Any:
    values = CONFIGS[architecture]
    values = {**values, "text_config": {**TEXT_CONFIG, **values["text_config"]}}
    return transformers.AutoConfig.for_model(architecture, **values)


def write(architecture: str, folder: Path) -> Path:
    """A base model in bfloat16 with tokenizer and the settings of a processor."""
    torch.manual_seed(0)
    small = config(architecture)
    auto_class(TEXT, small).from_config(small).to(torch.bfloat16).save_pretrained(folder)
    byte_tokenizer(small.get_text_config()).save_pretrained(folder)
    (folder / "processor_config.json").write_text('{"image_seq_length": 4}')
    return folder
