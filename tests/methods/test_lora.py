"""LoRA and its options: the formulas of the papers, and saved adapters that fit the published base model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peftlab.errors import UserError
from peftlab.loading.model import Base
from peftlab.methods.lora import Lora
from peftlab.methods.method import MethodContext, TrainingPlan
from peftlab.methods.targets import chosen_layers
from tests.contract.bases import tiny
from tests.sampling import slow_after

Load = Callable[..., Base]
Attach = Callable[..., torch.nn.Module]
Input = dict[str, torch.Tensor]
QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"


def perturbed(model: torch.nn.Module) -> torch.nn.Module:
    """Change every trainable tensor, as training does."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return model.eval()


@pytest.mark.parametrize(("stabilized", "scale"), [(False, 32 / 4), (True, 32 / 4**0.5)])
def test_the_update_is_the_formula_of_the_paper(base_of: Load, attach: Attach, stabilized: bool, scale: float) -> None:
    model = perturbed(attach(base_of(), Lora(rank=4, alpha=32, targets=["query"], rank_stabilized=stabilized)))
    layer = model.get_submodule(QUERY)
    a, b, w = layer.lora_A.default.weight, layer.lora_B.default.weight, layer.base_layer.weight  # type: ignore[union-attr]
    x = torch.randn(3, 384, generator=torch.Generator().manual_seed(0))
    expected = x @ w.T + layer.base_layer.bias + scale * (x @ a.T @ b.T)  # type: ignore[operator,union-attr]
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_untrained_it_is_the_identity_and_has_the_closed_form_count(
    base_of: Load, attach: Attach, probe_input: Input
) -> None:
    base = base_of()
    before = base.model(**probe_input).logits
    model = attach(base, Lora(rank=8))
    assert torch.equal(model(**probe_input).logits, before)
    added = sum(p.numel() for name, p in model.named_parameters() if ".lora_" in name)
    assert added == 8 * 6 * (4 * (384 + 384) + 2 * (384 + 1536))  # rank * sum of (inputs + outputs)


def test_saved_names_are_sorted_so_that_the_bytes_do_not_depend_on_the_hash_seed(
    base_of: Load, attach: Attach, tmp_path: Path
) -> None:
    method = Lora(rank=4)
    method.save(attach(base_of(), method), tmp_path)
    names = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert names == ["dense", "key", "query", "value"]  # PEFT shortens the full names


def test_attention_targets_exclude_feed_forward_layers() -> None:
    names = chosen_layers(tiny("phi", "AutoModelForCausalLM"), "attention", [])
    assert {name.rpartition(".")[2] for name in names} == {"q_proj", "v_proj"}


def test_the_initialization_depends_only_on_the_seed(base_of: Load, attach: Attach) -> None:
    def initial_a(quantization: str, seed: int, noise: int) -> torch.Tensor:
        base = base_of(quantization)
        torch.rand(noise)  # what else the program may have initial_a
        return attach(base, seed=seed).get_submodule(QUERY).lora_A.default.weight  # type: ignore[union-attr,return-value]

    assert torch.equal(initial_a("none", 0, 1), initial_a("nf4", 0, 5))
    assert not torch.equal(initial_a("none", 0, 1), initial_a("none", 1, 1))


def test_pissa_starts_as_the_base_and_is_saved_as_a_lora_adapter(
    base_of: Load, attach: Attach, probe_input: Input, tmp_path: Path
) -> None:
    method = Lora(rank=4, initialization="pissa")
    base = base_of()
    before = base.model(**probe_input).logits
    model = attach(base, method)
    torch.testing.assert_close(model(**probe_input).logits, before, atol=2e-5, rtol=0)
    principal = torch.linalg.svdvals(base_of().model.bert.encoder.layer[0].attention.self.query.weight)[:4]
    layer = model.get_submodule(QUERY)
    product = layer.scaling["default"] * layer.lora_B.default.weight @ layer.lora_A.default.weight  # type: ignore[index,union-attr,operator]
    torch.testing.assert_close(torch.linalg.svdvals(product)[:4], principal, atol=1e-4, rtol=1e-4)
    expected = perturbed(model)(**probe_input).logits
    with method.disabled(model):
        head = model.get_submodule("base_model.model.classifier").modules_to_save.default  # type: ignore[union-attr]
        features = base_of().model.bert(**probe_input).last_hidden_state
        torch.testing.assert_close(model(**probe_input).logits, head(features), atol=2e-5, rtol=0)  # type: ignore[operator]
    assert torch.equal(model(**probe_input).logits, expected)
    method.save(model, tmp_path)
    loaded = method.load(base_of().model, tmp_path).eval()
    torch.testing.assert_close(loaded(**probe_input).logits, expected, atol=2e-5, rtol=0)


def test_pissa_is_refused_for_quantized_bases_and_with_dora() -> None:
    method = Lora(initialization="pissa")
    assert "use quantization: none" in str(
        method.incompatible_with(MethodContext(architecture="bert", quantization="nf4", task_type="TOKEN_CLS"))
    )
    assert (
        method.incompatible_with(MethodContext(architecture="bert", quantization="none", task_type="TOKEN_CLS")) is None
    )
    both = Lora(initialization="pissa", weight_decomposed=True)
    assert "use one of them" in str(
        both.incompatible_with(MethodContext(architecture="bert", quantization="none", task_type="TOKEN_CLS"))
    )


def test_pissa_refuses_a_rank_above_the_number_of_singular_values(base_of: Load, attach: Attach) -> None:
    with pytest.raises(UserError, match=r"method.rank: 385, but bert.* has 384 singular values for PiSSA"):
        attach(base_of(), Lora(rank=385, initialization="pissa"))


def test_pissa_trains_the_base_in_float32() -> None:
    assert Lora(initialization="pissa").trains_base
    assert not Lora().trains_base


@pytest.mark.parametrize("quantization", slow_after(1, ["none", "int8", "nf4"]))
def test_dora_trains_a_magnitude_and_reloads_exactly(
    base_of: Load, attach: Attach, probe_input: Input, tmp_path: Path, quantization: str
) -> None:
    method = Lora(rank=4, weight_decomposed=True, targets=["query"])
    model = attach(base_of(quantization), method).train()
    model(**probe_input).logits.square().sum().backward()
    magnitudes = [p for name, p in model.named_parameters() if "magnitude" in name]
    assert len(magnitudes) == 6
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in magnitudes)
    expected = perturbed(model)(**probe_input).logits
    method.save(model, tmp_path)
    assert torch.equal(method.load(base_of(quantization).model, tmp_path).eval()(**probe_input).logits, expected)


def test_lora_plus_scales_the_rate_of_b_and_every_parameter_has_one_group(base_of: Load, attach: Attach) -> None:
    method = Lora(rank=4, b_rate_ratio=16)
    model = attach(base_of(), method)
    groups = method.parameter_groups(model, 1e-3, 0.01)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(len(group["params"]) for group in groups) == len(rates) == len(trainable)
    for name, p in trainable.items():
        assert rates[id(p)] == (1.6e-2 if ".lora_B." in name else 1e-3), name


def test_one_dimensional_tensors_have_no_weight_decay(base_of: Load, attach: Attach) -> None:
    method = Lora(rank=4)
    model = attach(base_of(), method)
    names = {id(p): name for name, p in model.named_parameters()}
    for group in method.parameter_groups(model, 1e-3, 0.01):
        for p in group["params"]:
            assert group["weight_decay"] == (0.0 if names[id(p)].endswith("bias") else 0.01), names[id(p)]


def test_only_the_adapter_and_the_head_are_saved(base_of: Load, attach: Attach, tmp_path: Path) -> None:
    method = Lora(rank=4, targets=["query"])
    method.save(attach(base_of("nf4"), method), tmp_path)
    assert {name.split(".")[-2] for name in load_file(tmp_path / "adapter_model.safetensors")} == {
        "lora_A", "lora_B", "classifier"
    }  # fmt: skip


def test_ranks_and_scales_by_pattern_are_the_layers_own(base_of: Load, attach: Attach) -> None:
    patterns = {"rank_pattern": {r"layer\.0\..*query": 2, "query": 3}, "alpha_pattern": {"value": 8.0}}
    model = attach(base_of(), Lora(rank=4, alpha=4, targets=["query", "value"], **patterns))
    layers = [model.get_submodule(f"base_model.model.bert.encoder.layer.{number}.attention.self") for number in (0, 1)]
    assert [layer.query.r["default"] for layer in layers] == [2, 3]  # type: ignore[union-attr,index]
    assert [layer.value.scaling["default"] for layer in layers] == [2.0, 2.0]  # type: ignore[union-attr,index]
    assert [layer.query.scaling["default"] for layer in layers] == [2.0, 4 / 3]  # type: ignore[union-attr,index]


def test_layers_restricts_the_adapter_to_their_numbers(base_of: Load, attach: Attach) -> None:
    model = attach(base_of(), Lora(rank=2, layers=[1, 4]))
    names = [name for name, p in model.named_parameters() if ".lora_A." in name]
    assert {name.split(".layer.")[1].partition(".")[0] for name in names} == {"1", "4"}
    assert len(names) == 2 * 6


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"rank_pattern": {"qurey": 2}},
            r"method.rank_pattern: 'qurey' matches no adapted layer; .* dense, key, query",
        ),
        ({"rank_pattern": {"query|key": 2, "key": 3}}, r"'key' matches only layers that a pattern before it matches"),
        ({"alpha_pattern": {"(": 2.0}}, r"method.alpha_pattern: '\(' is not a regular expression"),
        ({"layers": [6]}, r"method.layers: 6, but the chosen layers are 0 to 5"),
        ({"layers": [1], "rank_pattern": {r"layer\.0\..*": 2}}, r"matches no adapted layer"),
        ({"rank_pattern": {"query": 385}, "initialization": "olora"}, r"method.rank: 385, but .* for OLoRA"),
    ],
)
def test_a_pattern_or_layer_without_effect_is_refused(
    base_of: Load, attach: Attach, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        attach(base_of(), Lora(rank=4, **settings))


def test_olora_starts_with_orthonormal_columns_and_refuses_transposed_weights(base_of: Load, attach: Attach) -> None:
    layer = attach(base_of(), Lora(rank=4, initialization="olora")).get_submodule(QUERY)
    b = layer.lora_B.default.weight  # type: ignore[union-attr]
    torch.testing.assert_close(b.T @ b, torch.eye(4), atol=1e-5, rtol=0)  # type: ignore[operator,union-attr]
    with pytest.raises(UserError, match=r"PEFT's OLoRA decomposes .* use pissa"):
        Lora(rank=4, initialization="olora").apply(
            tiny("gpt2", "AutoModelForCausalLM"), TrainingPlan(optimizer_steps=1, task_type="CAUSAL_LM")
        )
