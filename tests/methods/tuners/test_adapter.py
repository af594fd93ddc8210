"""The adapter tuner: saving, several adapters, unloading, autocast, checkpointing, quantized bases."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel, PeftType
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForTokenClassification,
)

from peftlab.methods.adapter import Adapter
from peftlab.methods.tuners.adapter import AdapterConfig, AdapterLayer, register
from peftlab.quantization.four_bit import NF4
from tests.methods.adapters import VARIANTS, adapted, output, perturb, tiny, trainable


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_and_loaded_it_gives_bit_identical_outputs(variant: str, tmp_path: Path) -> None:
    method = Adapter(variant=variant, bottleneck=8, train_layer_norms=True)
    model = perturb(adapted(tiny("bert", AutoModelForTokenClassification), "TOKEN_CLS", **method.model_dump()))
    method.save(model, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }
    loaded = method.load(tiny("bert", AutoModelForTokenClassification), tmp_path).eval()
    assert torch.equal(output(loaded), output(model))
    assert not trainable(loaded)
    on_meta = PeftModel.from_pretrained(tiny("bert", AutoModelForTokenClassification), tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(output(on_meta.eval()), output(model))


@pytest.mark.slow  # imports transformers again
def test_a_new_process_gives_the_same_outputs(tmp_path: Path) -> None:
    tiny("gpt2").save_pretrained(tmp_path / "base")
    model = perturb(adapted(AutoModel.from_pretrained(tmp_path / "base")))
    Adapter().save(model, tmp_path / "adapter")
    program = (
        "import sys, torch; from pathlib import Path; from transformers import AutoModel;"
        "from peftlab.methods.adapter import Adapter;"
        "base, adapter, out = sys.argv[1:];"
        "model = Adapter().load(AutoModel.from_pretrained(base), Path(adapter)).eval();"
        "ids = torch.arange(3, 14)[None]; torch.save(model(input_ids=ids)[0], out)"
    )
    paths = [str(tmp_path / name) for name in ("base", "adapter", "out")]
    subprocess.run([sys.executable, "-c", program, *paths], check=True, capture_output=True)
    assert torch.equal(torch.load(tmp_path / "out"), model(input_ids=torch.arange(3, 14)[None])[0])


def test_two_adapters_are_independent() -> None:
    model = perturb(adapted(tiny("llama"), variant="houlsby"))
    first = output(model)
    model.add_adapter("second", AdapterConfig(variant="parallel", bottleneck=4, scaling=4.0))
    assert torch.equal(output(model), first)
    model.set_adapter("second")
    assert all(".second." in name for name in trainable(model))
    perturb(model)
    second = output(model)
    assert not torch.allclose(second, first)
    model.set_adapter("default")
    assert torch.equal(output(model), first)
    model.set_adapter("second")
    model.delete_adapter("default")
    assert torch.equal(output(model), second)
    assert not any("default" in layer.configs for layer in model.modules() if isinstance(layer, AdapterLayer))


def test_several_active_adapters_are_applied_in_order() -> None:
    layer, x = AdapterLayer(nn.Identity()), torch.randn(2, 5, 32)
    for name in ("a", "b"):
        layer.add_adapter(name, AdapterConfig(variant="houlsby", bottleneck=8), 32, torch.device("cpu"))
    perturb(layer)
    layer.set_adapter("a")
    after_a = layer(x)
    layer.set_adapter("b")
    after_both = layer(after_a)
    layer.set_adapter(["a", "b"])
    assert torch.equal(layer(x), after_both)


def test_of_several_active_norms_the_last_is_used() -> None:
    layer, x = AdapterLayer(nn.LayerNorm(32)), torch.randn(2, 5, 32)
    for name in ("a", "b"):
        layer.add_norm(name)
    perturb(layer)
    layer.set_adapter("b")
    after_b = layer(x)
    layer.set_adapter(["a", "b"])
    assert torch.equal(layer(x), after_b)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_activation_is_kept_after_the_forward_pass(variant: str) -> None:
    model = adapted(tiny("llama"), variant=variant)
    layers = [layer for layer in model.modules() if isinstance(layer, AdapterLayer)]
    output(model)
    assert all(layer.residual is None for layer in layers)
    with model.disable_adapter():
        output(model)
    assert all(layer.residual is None for layer in layers)


def test_down_is_initialized_as_in_adapterhub() -> None:
    layer, width = AdapterLayer(nn.Identity()), 512
    for variant in VARIANTS:
        layer.add_adapter(variant, AdapterConfig(variant=variant), width, torch.device("cpu"))
    spread = {variant: layer.bottleneck_down[variant].weight.std().item() for variant in VARIANTS}
    uniform = (3 * width) ** -0.5  # kaiming_uniform_ with a = sqrt(5), as in LoRA
    assert spread == pytest.approx({"houlsby": 0.02, "pfeiffer": 0.02, "parallel": uniform}, rel=0.02)


def test_unload_restores_the_base_model() -> None:
    base = tiny("llama")
    before, names = output(base), list(base.state_dict())
    model = perturb(adapted(base, variant="parallel", train_layer_norms=True))
    model.add_adapter("second", AdapterConfig())
    unloaded = model.unload()
    assert torch.equal(output(unloaded), before)
    assert list(unloaded.state_dict()) == names
    assert not any(module._forward_pre_hooks for module in unloaded.modules())


def test_a_deep_copy_is_independent() -> None:
    model = perturb(adapted(tiny("gpt2"), variant="parallel"))
    expected, twin = output(model), copy.deepcopy(model)
    model.unload()
    assert torch.equal(output(twin), expected)


def test_merging_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="cannot be merged"):
        adapted(tiny("bert")).merge_and_unload()


def test_registering_twice_has_no_effect() -> None:
    register()
    assert [member.value for member in PeftType].count("BOTTLENECK_ADAPTER") == 1
    assert adapted(tiny("bert")).peft_config["default"].peft_type.value == "BOTTLENECK_ADAPTER"


FAMILIES = {
    "bert": (AutoModelForTokenClassification, "TOKEN_CLS"),
    "gpt2": (AutoModelForCausalLM, "CAUSAL_LM"),
    "llama": (AutoModelForCausalLM, "CAUSAL_LM"),
    "t5": (AutoModelForSeq2SeqLM, "SEQ_2_SEQ_LM"),
}


def train(model: nn.Module, steps: int) -> None:
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-2)
    model.train()
    for _ in range(steps):
        output(model)[..., ::2].float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def quantized(model_type: str, precision: str, folder: Path) -> nn.Module:
    from transformers import BitsAndBytesConfig

    family, _ = FAMILIES[model_type]
    tiny(model_type, family).save_pretrained(folder)
    keep = ["classifier", "lm_head"]
    config = {
        "int8": BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=keep),
        "nf4": NF4().config(keep, torch.float32),
    }[precision]
    base = family.from_pretrained(folder, quantization_config=config, device_map={"": "cpu"}).eval()
    NF4().prepare(base)
    return base


@pytest.mark.parametrize("precision", ["int8", "nf4"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_tensor_trains_over_a_frozen_quantized_base(model_type: str, precision: str, tmp_path: Path) -> None:
    base = quantized(model_type, precision, tmp_path)
    with torch.no_grad():
        before = output(base)
        model = adapted(base, FAMILIES[model_type][1], variant="houlsby")
        assert torch.equal(output(model), before)
    train(model, 2)
    output(model)
    start = {name: p.detach().clone() for name, p in trainable(model).items()}
    train(model, 2)
    assert all(not torch.equal(p, start[name]) for name, p in trainable(model).items())
    assert all("bottleneck_" in name or "classifier" in name for name in start)
    if model_type != "bert":  # whose head has been trained
        with model.disable_adapter(), torch.no_grad():
            assert torch.equal(output(model), before)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_gradient_checkpointing_changes_no_gradient(model_type: str, variant: str) -> None:
    model = perturb(adapted(tiny(model_type), variant=variant)).train()
    output(model)[..., ::2].square().sum().backward()
    plain = {name: p.grad for name, p in trainable(model).items()}
    model.zero_grad()
    model.base_model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    output(model)[..., ::2].square().sum().backward()
    assert all(torch.allclose(p.grad, plain[name], rtol=1e-4, atol=1e-4) for name, p in trainable(model).items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast_computes_the_bottleneck_in_bfloat16_over_float32_weights(variant: str) -> None:
    model = perturb(adapted(tiny("llama"), variant=variant))
    seen: list[torch.dtype] = []
    for layer in (m for m in model.modules() if isinstance(m, AdapterLayer)):
        layer.bottleneck_down["default"].register_forward_hook(lambda *a: seen.append(a[2].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        output(model).float().square().sum().backward()
    assert set(seen) == {torch.bfloat16}
    assert {p.grad.dtype for p in trainable(model).values()} == {torch.float32}


def test_autocast_does_not_widen_a_narrow_activation() -> None:
    model = adapted(tiny("llama"), variant="houlsby")
    seen: set[torch.dtype] = set()
    for layer in (m for m in model.modules() if isinstance(m, AdapterLayer)):
        layer.bottleneck_down["default"].register_forward_pre_hook(lambda _, a: seen.add(a[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        output(model)
    assert seen == {torch.bfloat16}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_bfloat16_base_stays_bfloat16_around_float32_adapters(variant: str) -> None:
    model = perturb(adapted(tiny("llama").bfloat16(), variant=variant, train_layer_norms=True))
    assert {p.dtype for p in trainable(model).values()} == {torch.float32}
    assert output(model).dtype == torch.bfloat16


def test_no_backward_below_the_lowest_adapter() -> None:
    model = adapted(tiny("bert"))
    needs: dict[str, bool] = {}
    for name in ("0.attention.output.dense", "0.output.dense", "1.attention.output.dense"):
        layer = model.get_submodule(f"base_model.model.encoder.layer.{name}")
        layer.register_forward_hook(lambda *a, name=name: needs.update({name: a[2].requires_grad}))
    output(model)
    assert needs == {"0.attention.output.dense": False, "0.output.dense": False, "1.attention.output.dense": True}


@pytest.mark.parametrize("model_type", ["bert", "llama", "gemma2", "t5"])
def test_layer_norms_train_as_copies_and_those_of_the_base_are_frozen(model_type: str) -> None:
    model = adapted(tiny(model_type), train_layer_norms=True)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    norms = [name for name in trainable(model) if "bottleneck_norm" in name]
    assert len(norms) == sum("norm" in name.lower() for name in frozen)
    with model.disable_adapter():
        base = output(model)
    assert torch.equal(output(model), base)
    start = {name: p.detach().clone() for name, p in trainable(model).items()}
    train(model, 2)
    assert not any(torch.equal(p, start[name]) for name, p in trainable(model).items())
    assert all(torch.equal(model.get_parameter(name), p) for name, p in frozen.items())
    with model.disable_adapter():
        assert torch.equal(output(model), base)


def test_the_input_of_pfeiffer_passes_through_the_trained_norm() -> None:
    """Trained norms of the adapter have the same effect as norms of the base model with the same values."""
    model, base = perturb(adapted(tiny("bert"), train_layer_norms=True)), tiny("bert")
    state = {name.removeprefix("base_model.model."): p for name, p in trainable(model).items()}
    norms = {name.replace("bottleneck_norm.default.", ""): p for name, p in state.items() if "norm" in name}
    assert not base.load_state_dict(norms, strict=False).unexpected_keys
    plain = adapted(base)
    plain.base_model.model.load_state_dict({k: p for k, p in state.items() if "norm" not in k}, strict=False)
    assert torch.equal(output(plain), output(model))
