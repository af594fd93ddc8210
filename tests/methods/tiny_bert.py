"""A tiny BERT and training plans for the tests of single methods."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel

from peftlab.methods import TrainingPlan
from tests.contract import bases
from tests.contract.bases import tiny

TAGS = TrainingPlan(optimizer_steps=4, task_type="TOKEN_CLS", head=("classifier",), longest_input=11)
TEXT = TrainingPlan(optimizer_steps=4, task_type="CAUSAL_LM")


def bert() -> PreTrainedModel:
    model = tiny("bert", "AutoModelForTokenClassification", num_labels=3)
    model.requires_grad_(False)
    return model


def logits(model: nn.Module) -> Tensor:
    return bases.logits(model, "encoder")


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
