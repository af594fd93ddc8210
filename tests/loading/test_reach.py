"""Reach: what a method adapts and a quantization packs, in numbers and in words."""

from pathlib import Path
from typing import Any

import pytest
import torch

from peftlab.errors import UserError
from peftlab.loading.model import Base, LoadOptions, load_base
from peftlab.loading.reach import measure_reach, reach_lines
from peftlab.methods import METHODS, TrainingPlan
from peftlab.methods.trunk import EXPERTS, Trunk, find_trunk
from peftlab.models.model import Model, ModelFiles
from peftlab.quantization import QUANTIZATIONS
from peftlab.recipe import Recipe
from peftlab.results.reach import Reach
from peftlab.tasks import TASKS
from tests.methods.tiny_bert import TAGS, TEXT, bert
from tests.methods.tiny_moe import tiny_moe

FILES = ModelFiles(folder=Path(), source="tiny", fingerprint="")


def measured(model: Any, kind: str, plan: TrainingPlan, **settings: Any) -> tuple[Reach, list[str]]:
    method = METHODS[kind].model_validate({"kind": kind, **settings})
    base = Base(model, plan.head, 0, FILES, trunk=find_trunk(model, plan.head))
    reach = measure_reach(method, base, method.apply(model, plan))
    values = {"name": "x", "model": "x", "data": "none", "task": "causal_lm", "method": method.model_dump()}
    return reach, list(reach_lines(Recipe.model_validate(values), base, reach))


@pytest.mark.parametrize(
    ("architecture", "linear", "with_experts"),
    [
        ("mixtral", 0.1808, 0.9944),
        pytest.param("gpt_oss", 0.1808, 0.9944, marks=pytest.mark.slow),
        pytest.param("qwen3_moe", 0.3048, 0.9905, marks=pytest.mark.slow),
        ("deepseek_v3", 0.6332, 0.9950),
        pytest.param("qwen3_next", 0.3967, 0.9857, marks=pytest.mark.slow),
    ],
)
def test_lora_reaches_the_linear_layers_and_if_asked_the_experts(
    architecture: str, linear: float, with_experts: float
) -> None:
    reach, lines = measured(tiny_moe(architecture), "lora", TEXT, rank=2)
    assert reach.adapted == pytest.approx(linear, abs=5e-5)
    assert reach.not_adapted[EXPERTS] > 0.3
    assert sum(reach.not_adapted.values()) == pytest.approx(1 - linear, abs=5e-5)
    assert f"warning: left out are {100 * reach.not_adapted[EXPERTS]:.1f} % {EXPERTS}" in lines[0]
    full, quiet = measured(tiny_moe(architecture), "lora", TEXT, rank=2, experts=True)
    assert full.adapted == pytest.approx(with_experts, abs=5e-5)
    assert "warning" not in " ".join(quiet)
    # the remedy says how many parameters more
    difference = sum(
        sum(p.numel() for p in METHODS["lora"](rank=2, experts=e).apply(tiny_moe(architecture), TEXT).parameters()) * s
        for e, s in ((True, 1), (False, -1))
    )
    assert lines[1] == f"method.experts: true adapts the experts too, with {difference:,} trainable parameters more"


@pytest.mark.parametrize(
    ("kind", "settings", "sentence"),
    [
        ("lora", {}, "LoRA adapts 100 % of the trunk's matrix weights"),
        ("full", {}, "full fine-tuning adapts 100 % of the trunk's matrix weights"),
        ("adapter", {}, "Adapter is in 100 % of the layers"),
        ("bitfit", {}, "BitFit acts on biases, not on weight matrices"),
        ("head", {}, "head alone acts on the head, not on weight matrices"),
        ("prefix_tuning", {}, "prefix tuning acts on virtual tokens, not on weight matrices"),
        ("peft", {"type": "LN_TUNING"}, "PEFT acts on norms, not on weight matrices"),
        (
            "lora",
            {"targets": ["layer.1.output.dense", "layer.1.intermediate.dense"]},
            "LoRA adapts 25.0 % of the trunk's matrix weights; left out are 50.0 % bert.encoder.layer, "
            "25.0 % attention",
        ),
    ],
)
def test_every_method_says_what_it_reaches_of_a_dense_base(kind: str, settings: dict[str, Any], sentence: str) -> None:
    _, lines = measured(bert(), kind, TAGS, **settings)
    assert lines == [sentence]


def test_full_fine_tuning_says_that_the_routers_auxiliary_loss_is_not_added() -> None:
    reach, lines = measured(tiny_moe("mixtral").requires_grad_(True), "full", TEXT)
    assert reach.adapted == 1.0
    assert "without the auxiliary loss that balances the experts (router_aux_loss_coef: 0.001" in lines[1]


def test_the_largest_branch_without_an_adapted_weight_is_named() -> None:
    shapes = {f"model.{part}.layers.{i}.fc.weight": (4, 4) for part in ("vision", "text") for i in range(2)}
    assert Trunk(shapes).rest(["model.text.layers.0.fc", "model.text.layers.1.fc"]) == {"model.vision": 0.5}


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixtral")
    tiny_moe("mixtral").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantization_that_leaves_experts_in_float_is_refused_unless_accepted(kind: str, mixtral: Path) -> None:
    files = ModelFiles(folder=mixtral, source="tiny", fingerprint="")
    options = LoadOptions(device=torch.device("cpu"), compute=torch.float32)

    def load(**settings: Any) -> Base:
        return load_base(Model(id="x"), files, TASKS["causal_lm"](), QUANTIZATIONS[kind](**settings), options)

    # 2 layers x 4 experts x (96 x 32 + 32 x 48) weights of four bytes
    gib = 2 * 4 * (96 * 32 + 32 * 48) * 4 / 2**30
    with pytest.raises(UserError, match=rf"81\.4% of .* are experts .*: {gib:,.3g} GiB that would stay in float32"):
        load()
    base = load(float_experts=True)
    reach = measure_reach(METHODS["lora"](), base, base.model)
    assert reach.packed == pytest.approx(0.1808, abs=5e-5)
    assert reach.of_quantization("NF4") == (
        f"NF4 packs 18.1 % of the trunk's matrix weights; warning: left out are 81.4 % {EXPERTS}, 0.6 % mlp.gate"
    )


def test_what_is_not_reached_is_a_footnote() -> None:
    part = Reach(weights=10, adapted=0.25, not_adapted={EXPERTS: 0.75}, packed=0.25, not_packed={EXPERTS: 0.75})
    assert list(part.notes("LoRA", "NF4")) == [
        f"{verb} 25.0 % of the trunk's matrix weights, without 75.0 % {EXPERTS}"
        for verb in ("LoRA adapts", "NF4 packs")
    ]
    assert list(Reach(weights=10, adapted=1.0, packed=1.0).notes("LoRA", "NF4")) == []
