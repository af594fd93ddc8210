"""Layer-wise learning rates: whose rate is what, for bases and for what methods add to them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from peftlab.errors import UserError
from peftlab.methods import Method, TrainingPlan
from peftlab.methods.adapter import Adapter
from peftlab.methods.bitfit import BitFit
from peftlab.methods.full import Full
from peftlab.methods.head import Head
from peftlab.methods.lora import Lora
from peftlab.models.text_branch import TEXT, auto_class
from peftlab.recipe import load_recipe
from peftlab.tasks import Task
from peftlab.training.layer_decay import layer_rates, layers_from_top
from tests.contract import bases
from tests.models import multimodal
from tests.training.test_adversarial import CLASSES, Load
from tests.training.test_loop import Encoded, distance, trained


def rates(method: Method, model: nn.Module, decay: float) -> dict[str, float]:
    groups = layer_rates(method.parameter_groups(model, 1.0, 0.01), model, decay)
    of = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(of)
    return {name: of[id(p)] for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("architecture", "bottom", "layers", "top"),
    [
        ("bert", "bert.embeddings.word_embeddings.weight", r"encoder\.layer\.(\d)", "classifier.weight"),
        ("gpt2", "transformer.wpe.weight", r"transformer\.h\.(\d)", "transformer.ln_f.weight"),
        ("llama", "model.embed_tokens.weight", r"model\.layers\.(\d)", "model.norm.weight"),
        ("t5", "shared.weight", r"block\.(\d)\.layer\.\d", "decoder.final_layer_norm.weight"),
    ],
)
def test_each_layer_has_a_lower_rate_than_the_one_above_it(
    architecture: str, bottom: str, layers: str, top: str
) -> None:
    sizes: dict[str, Any] = bases.SIZES[architecture] if architecture in ("llama", "t5") else {}
    model = bases.tiny(architecture, CLASSES[architecture], **sizes)
    found = rates(Full(), model, 0.5)
    for name, rate in found.items():
        layer = re.search(layers, name)
        if layer is not None:
            assert rate == 0.5 ** (bases.LAYERS - int(layer[1])), name
    assert found[bottom] == 0.5 ** (bases.LAYERS + 1)
    assert found[top] == 1.0
    assert set(layers_from_top(model).values()) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("architecture", "sizes", "bottom", "top"),
    [
        ("camembert", {}, ["roberta.embeddings.position_embeddings"], ["classifier.dense", "classifier.out_proj"]),
        (
            "bart",
            {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2},
            [f"model.{x}.{y}" for x in ("encoder", "decoder") for y in ("embed_positions", "layernorm_embedding")],
            ["classification_head.dense"],
        ),
        ("opt", {"word_embed_proj_dim": 32}, ["model.decoder.project_in"], ["model.decoder.final_layer_norm", "score"]),
        ("deberta-v2", {"relative_attention": True}, ["deberta.encoder.rel_embeddings"], ["pooler.dense"]),
    ],
)
def test_head_and_embedding_are_recognized_in_any_order_of_parameters(
    architecture: str, sizes: dict[str, Any], bottom: list[str], top: list[str]
) -> None:
    found = rates(Full(), bases.tiny(architecture, "AutoModelForSequenceClassification", **sizes), 0.5)
    assert {found[f"{name}.weight"] for name in bottom} == {0.5 ** (bases.LAYERS + 1)}
    assert {found[f"{name}.weight"] for name in top} == {1.0}


@pytest.mark.parametrize(
    "method", [Lora(rank=2), Lora(rank=2, b_rate_ratio=16.0), Adapter(bottleneck=8), BitFit()], ids=repr
)
def test_added_parameters_have_the_rate_of_their_layer(method: Method, base_of: Load) -> None:
    from peftlab.methods import TrainingPlan

    base = base_of()
    torch.manual_seed(0)
    model = method.apply(base.model, TrainingPlan(optimizer_steps=10, task_type="TOKEN_CLS", head=base.head))
    for name, rate in rates(method, model, 0.9).items():
        layer = re.search(r"layer\.(\d)\.", name)
        expected = 0.9 ** (6 - int(layer[1])) if layer else 0.9**7 if "embeddings" in name else 1.0
        fast = getattr(method, "b_rate_ratio", 1.0) if ".lora_B." in name else 1.0
        assert rate == pytest.approx(expected * fast), name


def test_a_decay_of_one_changes_nothing_and_the_reported_rate_is_the_highest(
    base_of: Load, tagging: Task, encoded: Encoded
) -> None:
    plain, log = trained(base_of(), tagging, encoded, steps=2)
    same, _ = trained(base_of(), tagging, encoded, steps=2, layer_decay=1.0)
    assert distance(plain, same) == 0.0
    slower, slower_log = trained(base_of(), tagging, encoded, steps=2, layer_decay=0.5)
    assert [step.learning_rate for step in slower_log.steps] == [step.learning_rate for step in log.steps]
    for layer in range(6):  # Adam's first steps are as long as the rate
        name = next(n for n in plain if f"layer.{layer}." in n and "lora_B" in n)
        assert slower[name].norm() / plain[name].norm() == pytest.approx(0.5 ** (6 - layer), rel=0.25)


def test_the_embeddings_of_a_text_branch_lie_below_its_layers_however_many_a_frozen_tower_has() -> None:
    config = multimodal.config("llava")
    config.vision_config.num_hidden_layers = 5
    with torch.device("meta"):
        model = auto_class(TEXT, config).from_config(config)
    Full().apply(model, TrainingPlan(optimizer_steps=10, task_type="CAUSAL_LM"))
    found = rates(Full(), model, 0.5)
    assert found["model.language_model.embed_tokens.weight"] == 0.5**3
    assert found["model.language_model.layers.0.mlp.up_proj.weight"] == 0.5**2


def test_layer_decay_without_trainable_layers_is_refused(base_of: Load, tmp_path: Path) -> None:
    base = base_of()
    model = Head().apply(base.model, TrainingPlan(optimizer_steps=10, task_type="TOKEN_CLS", head=base.head))
    with pytest.raises(UserError, match="all trained parameters are in the same layer"):
        rates(Head(), model, 0.9)
    path = tmp_path / "mine.yaml"
    path.write_text(
        "model: sentence-transformers/all-MiniLM-L6-v2\ntask: token_classification\ndata: datamade/usaddress\n"
        "method: prompt_tuning\ntraining: {layer_decay: 0.9}\n"
    )
    with pytest.raises(UserError, match=r"training.layer_decay: virtual tokens belong to no layer"):
        load_recipe(path)
