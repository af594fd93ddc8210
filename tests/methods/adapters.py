"""Tiny models with bottleneck adapters."""

from __future__ import annotations

import re
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    PreTrainedModel,
)

from peftlab.methods.adapter import Adapter
from peftlab.methods.method import TrainingPlan

ENCODER_DECODERS = {"bart", "mbart", "mt5", "t5"}
VARIANTS = ["houlsby", "pfeiffer", "parallel"]
SIZE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
ARCHITECTURE_SIZES = {  # settings with other names in an architecture
    "bart": {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64},
    "distilbert": {"hidden_dim": 64},
    "electra": {"embedding_size": 32},
    "t5": {"d_ff": 64, "num_decoder_layers": 2},
}
ARCHITECTURE_SIZES |= {"mbart": ARCHITECTURE_SIZES["bart"], "mt5": ARCHITECTURE_SIZES["t5"]}


def tiny(model_type: str, family: Any = AutoModel) -> PreTrainedModel:
    """Model of this architecture with two layers, width 32, random weights and no dropout, in evaluation mode."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SIZE, **ARCHITECTURE_SIZES.get(model_type, {})})
    for name, value in config.to_dict().items():
        if isinstance(value, float) and re.search("dropout|pdrop", name):
            setattr(config, name, 0.0)
    return family.from_config(config).eval()


def inputs(model: nn.Module) -> dict[str, Tensor]:
    """Three sequences of 11 tokens, two of them padded."""
    ids = torch.randint(3, 97, (3, 11), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(11) < torch.tensor([[11], [8], [5]])).long()
    batch = {"input_ids": ids, "attention_mask": mask}
    return {**batch, "decoder_input_ids": ids[:, :7]} if model.config.is_encoder_decoder else batch


def output(model: nn.Module) -> Tensor:
    """First output of the model, (batch, length, width or classes)."""
    return model(**inputs(model))[0]


def trainable(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def perturb(model: nn.Module, seed: int = 2) -> nn.Module:
    """Give every trainable tensor values far from its initial ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in trainable(model).values():
            p.copy_(p + 0.3 * torch.randn(p.shape, generator=generator))
    return model


def adapted(model: nn.Module, task_type: str = "FEATURE_EXTRACTION", **settings: Any) -> PeftModel:
    torch.manual_seed(3)
    head = ("classifier",) if task_type == "TOKEN_CLS" else ()
    method = Adapter(**{"bottleneck": 8, **settings})
    return method.apply(model, TrainingPlan(optimizer_steps=1, task_type=task_type, head=head)).eval()
