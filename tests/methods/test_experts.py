"""LoRA on mixtures of experts: placed where the recipe says, experts included, reloaded to the bit and merged."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import ValidationError
from torch import nn
from transformers import AutoModelForCausalLM

from peftlab.errors import UserError
from peftlab.methods import TrainingPlan
from peftlab.methods.adapted import adapted, require_chosen
from peftlab.methods.experts import stacked_experts
from peftlab.methods.lora import Lora
from peftlab.methods.method import MethodContext
from peftlab.methods.targets import linear_layers
from tests.methods.tiny_bert import TAGS, bert
from tests.methods.tiny_moe import EXPERTS, sentences, tiny_moe
from tests.sampling import slow_after

PLAN = TrainingPlan(optimizer_steps=10, task_type="CAUSAL_LM")
MOVED_BY_PEFT = {"qwen3_next", "deepseek_v3", "glm4_moe"}  # they have shared experts or dense layers


def trained(method: Lora, architecture: str) -> nn.Module:
    torch.manual_seed(0)
    model = method.apply(tiny_moe(architecture), PLAN)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.3)
    for _ in range(2):
        model(input_ids=sentences(), labels=sentences()).loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(input_ids=sentences()).logits
    return output


@pytest.mark.parametrize("architecture", slow_after(1, sorted(MOVED_BY_PEFT)))
def test_peft_moves_adapters_of_shared_experts_and_dense_layers_unless_it_is_kept_from_it(architecture: str) -> None:
    base = tiny_moe(architecture)
    chosen = linear_layers(base, ())
    plain = get_peft_model(tiny_moe(architecture), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=chosen))
    assert adapted(plain) != {*chosen}
    with pytest.raises(
        UserError, match=rf"of {len(chosen)} chosen .* left out \d+, e.g. model.* and added \d+, .*experts"
    ):
        require_chosen(plain, chosen)
    assert adapted(Lora(rank=4).apply(base, PLAN)) == {*chosen}


QUICK = [("mixtral", True), ("gpt_oss", True), ("glm4_moe", True), ("deepseek_v3", False)]
ALL = [*((name, True) for name in EXPERTS), *((name, False) for name in sorted(MOVED_BY_PEFT))]


@pytest.mark.parametrize(
    ("architecture", "experts"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in ALL if case not in QUICK)],
)
def test_an_adapter_on_a_mixture_of_experts_reloads_to_the_bit_and_merges(
    architecture: str, experts: bool, tmp_path: Path
) -> None:
    method = Lora(rank=2, experts=experts, targets=["o_proj"] if architecture == "llama4_text" else "all-linear")
    model = trained(method, architecture)
    base = tiny_moe(architecture)
    places = adapted(model)
    assert places.issuperset(stacked_experts(base)) if experts else not any(".experts." in name for name in places)
    method.save(model, tmp_path)
    expected = logits(model)
    assert (expected - logits(base)).abs().max() > 1e-3
    assert torch.equal(logits(method.load(tiny_moe(architecture), tmp_path).eval()), expected)
    merged = method.merge(model)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-5, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    assert torch.equal(logits(again), logits(merged))


@pytest.mark.parametrize("architecture", ["mixtral", "glm4_moe"])
def test_plain_peft_reloads_experts_where_it_does_not_convert_the_targets(architecture: str, tmp_path: Path) -> None:
    method = Lora(rank=2, experts=True, targets=["q_proj", "v_proj"])
    model = trained(method, architecture)
    method.save(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        plain = PeftModel.from_pretrained(tiny_moe(architecture), tmp_path).eval()
    assert torch.equal(logits(plain), logits(model))


def test_each_expert_has_the_rank_of_the_recipe() -> None:
    model = Lora(rank=2, experts=True, targets=["q_proj"]).apply(tiny_moe("mixtral"), PLAN)
    sizes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad and "layers.0.mlp" in name}
    (outer, inner) = "mlp.experts.", "mlp.experts.base_layer."
    shapes = {
        name.partition("layers.0.")[2].replace(".default.weight", ""): tuple(size) for name, size in sizes.items()
    }
    assert shapes == {
        **{f"{inner}lora_A": (4 * 2, 32), f"{inner}lora_B": (96, 4 * 2)},
        **{f"{outer}lora_A": (4 * 2, 48), f"{outer}lora_B": (32, 4 * 2)},
    }


def test_a_base_without_experts_is_refused() -> None:
    with pytest.raises(UserError, match=r"method\.experts: this base has no experts in 3-D parameters"):
        Lora(experts=True).apply(bert(), TAGS)


@pytest.mark.parametrize(("key", "value"), [("dropout", 0.1), ("weight_decomposed", True), ("initialization", "pissa")])
def test_settings_that_peft_does_not_have_for_experts_are_refused(key: str, value: object) -> None:
    with pytest.raises(ValidationError, match=f"experts: not available with {key}"):
        Lora.model_validate({"experts": True, key: value})


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [({}, False), ({"layers": [0]}, True), ({"exclude": ["o_proj"]}, True), ({"targets": ["o_proj"]}, True)],
)
def test_settings_that_leave_layers_out_do_so_by_choice(settings: dict[str, Any], chosen: bool) -> None:
    assert Lora.model_validate_json(json.dumps(settings)).partial_by_choice == chosen


def test_a_target_that_is_a_stack_of_experts_names_the_key() -> None:
    with pytest.raises(UserError, match=r"'gate_up_proj' is a 3-D parameter that stacks experts: use lora's experts"):
        Lora(targets=["gate_up_proj"]).apply(tiny_moe("mixtral"), PLAN)


@pytest.mark.parametrize(("context", "refused"), [({"sharded": True}, True), ({"zero_stage": 3}, True), ({}, False)])
def test_experts_are_refused_on_shards(context: dict[str, Any], refused: bool) -> None:
    facts = {"architecture": "mixtral", "quantization": "none", "task_type": "CAUSAL_LM"}
    reason = Lora(experts=True).incompatible_with(MethodContext(**{**facts, **context}))
    assert (reason is not None) == refused
