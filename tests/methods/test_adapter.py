"""Bottleneck adapters: the field's reference to its last digits, and everything PEFT promises of a method."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PeftType, get_peft_model
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from peftlab.methods.adapter import Adapter
from peftlab.methods.method import MethodContext, TrainingPlan
from peftlab.methods.tuners.adapter import AdapterConfig, AdapterLayer, register
from peftlab.methods.tuners.sublayers import SUBLAYERS
from peftlab.quantization.four_bit import NF4

REFERENCE = Path(__file__).parent / "adapterhub"
PAIRS = json.loads((REFERENCE / "index.json").read_text())["pairs"]
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
OWN_SIZES = {  # what an architecture calls otherwise
    "bart": {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64},
    "distilbert": {"hidden_dim": 64},
    "electra": {"embedding_size": 32},
    "t5": {"d_ff": 64, "num_decoder_layers": 2},
}
OWN_SIZES |= {"mbart": OWN_SIZES["bart"], "mt5": OWN_SIZES["t5"]}


def tiny(model_type: str, family: Any = AutoModel) -> PreTrainedModel:
    """Two layers of this architecture, 32 wide, random weights, no dropout, in evaluation."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SIZE, **OWN_SIZES.get(model_type, {})})
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
    """(batch, length, width or classes)"""
    return model(**inputs(model))[0]


def trainable(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def stir(model: nn.Module, seed: int = 2) -> nn.Module:
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


# --- the reference ---------------------------------------------------------------------------------------------------


def without_float32_norms(model: nn.Module) -> nn.Module:
    """transformers' RMS norms compute in float32 whatever comes in; torch's, which are the same function, do not."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "variance_epsilon"):
            model.set_submodule(name, nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon))
    return model


def reference(pair: str, exact: bool = False) -> tuple[nn.Module, dict[str, Tensor], dict[str, str]]:
    """Our model with the reference's weights; the reference's tensors; our name of each of its adapter tensors.

    `exact`: all in float64.
    """
    architecture, variant = pair.split("-")
    tensors = load_file(REFERENCE / f"{pair}.safetensors")
    base = tiny(architecture)
    base = without_float32_norms(base) if exact else base
    base.load_state_dict(
        {k.removeprefix("base."): v for k, v in tensors.items() if k.startswith("base.")}, strict=False
    )
    model = adapted(base, variant=variant).base_model.model
    ends = {
        "bert": {"output.adapters.a": "output.dropout"},
        "gpt2": {"attention_adapters.adapters.a": "attn.resid_dropout", "output_adapters.adapters.a": "mlp.dropout"},
        "llama": {"attention_adapters.adapters.a": "self_attn.o_proj", "output_adapters.adapters.a": "mlp"},
        "t5": {"adapters.a": "dropout"},
    }[architecture]
    names = {}
    for theirs in (key.removeprefix("adapter.") for key in tensors if key.startswith("adapter.")):
        ours = theirs.replace("adapter_down.0", "bottleneck_down.default")
        ours = ours.replace("adapter_up", "bottleneck_up.default")
        for old, new in ends.items():
            ours = ours.replace(old, new)
        names[theirs] = ours
    with torch.no_grad():
        for theirs, ours in names.items():
            model.get_parameter(ours).copy_(tensors[f"adapter.{theirs}"])
    assert set(names.values()) == set(trainable(model))
    return model.double() if exact else model, tensors, names


def last_hidden_state(model: nn.Module, tensors: dict[str, Tensor]) -> Tensor:
    return model(**{k.removeprefix("input."): v for k, v in tensors.items() if k.startswith("input.")})[0]


def gradients(model: nn.Module, loss: Tensor, names: dict[str, str]) -> Tensor:
    """All of them in one vector, float64, in the reference's order."""
    found = torch.autograd.grad(loss, [model.get_parameter(ours) for ours in names.values()], retain_graph=True)
    return torch.cat([gradient.flatten().double() for gradient in found])


@pytest.mark.parametrize("pair", PAIRS)
def test_outputs_are_the_references(pair: str) -> None:
    model, tensors, _ = reference(pair)
    assert (last_hidden_state(model, tensors) - tensors["on"]).abs().max() < 1e-5


@pytest.mark.parametrize("pair", PAIRS)
def test_defaults_are_the_references(pair: str) -> None:
    theirs, ours = PAIRS[pair]["config"], Adapter(variant=pair.split("-")[1], bottleneck=8)
    assert ours.activation == {"swish": "silu"}.get(theirs["non_linearity"], theirs["non_linearity"])
    assert ours.scaling == theirs["scaling"]


@pytest.mark.parametrize("pair", PAIRS)
def test_gradients_are_the_references_up_to_float32_rounding(pair: str) -> None:
    """Their loss, the sum of squares behind a norm of unit gain, is all but constant: terms of 10^2 cancel to 10^-5.

    So both float32 gradients are compared with the float64 one, and with the size of what cancels.
    """
    model, tensors, names = reference(pair)
    theirs = torch.cat([tensors[f"grad.{name}"].flatten().double() for name in names])
    ours = gradients(model, last_hidden_state(model, tensors).square().sum(), names)
    model, *_ = reference(pair, exact=True)
    hidden = last_hidden_state(model, tensors).square()
    exact = gradients(model, hidden.sum(), names)
    rounding = 1e-6 * gradients(model, hidden[..., ::2].sum(), names).norm()
    assert (theirs - exact).norm() < rounding
    assert (ours - exact).norm() < rounding


@pytest.mark.parametrize("pair", PAIRS)
def test_gradients_are_the_derivatives_of_the_outputs(pair: str) -> None:
    """Half of the features, where nothing cancels, against a central difference in float64."""
    model, tensors, names = reference(pair, exact=True)
    direction = {ours: torch.randn_like(model.get_parameter(ours)) for ours in names.values()}

    def loss(step: float) -> Tensor:
        moved = {ours: model.get_parameter(ours) + step * towards for ours, towards in direction.items()}
        inputs = {k.removeprefix("input."): v for k, v in tensors.items() if k.startswith("input.")}
        return torch.func.functional_call(model, moved, kwargs=inputs)[0][..., ::2].square().sum()

    slope = gradients(model, loss(0.0), names) @ torch.cat([towards.flatten() for towards in direction.values()])
    assert slope.item() == pytest.approx((loss(1e-6) - loss(-1e-6)).item() / 2e-6, rel=1e-4)


# --- every architecture ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", SUBLAYERS)
def test_residual_and_hidden_make_up_what_leaves_the_layer(model_type: str) -> None:
    model, sublayer = tiny(model_type), SUBLAYERS[model_type].feed_forward
    layers = [m for name, m in model.named_modules() if re.fullmatch(rf"(.*\.)?{sublayer.layer}", name)]
    seen: dict[str, Tensor] = {}
    layers[0].get_submodule(sublayer.residual).register_forward_pre_hook(lambda _, a: seen.update(residual=a[0]))
    layers[0].get_submodule(sublayer.hidden).register_forward_hook(lambda *a: seen.update(hidden=a[2]))
    layers[0].register_forward_hook(lambda *a: seen.update(leaves=a[2][0] if isinstance(a[2], tuple) else a[2]))
    output(model)
    total = seen["residual"] + seen["hidden"]
    total = layers[0].get_submodule(sublayer.norm)(total) if sublayer.norm else total
    assert torch.allclose(total, seen["leaves"], atol=1e-6)


@pytest.mark.parametrize("model_type", sorted(SUBLAYERS.keys() - ENCODER_DECODERS))
def test_attention_and_what_enters_the_layer_make_up_the_residual(model_type: str) -> None:
    model, sublayers = tiny(model_type), SUBLAYERS[model_type]
    pattern = rf"(.*\.)?{sublayers.attention.layer}"
    layer = next(m for name, m in model.named_modules() if re.fullmatch(pattern, name))
    seen: dict[str, Tensor] = {}
    layer.register_forward_pre_hook(lambda _, a: seen.update(enters=a[0]))
    layer.get_submodule(sublayers.attention.hidden).register_forward_hook(lambda *a: seen.update(hidden=a[2]))
    source = layer.get_submodule(sublayers.feed_forward.residual)
    source.register_forward_pre_hook(lambda _, a: seen.update(residual=a[0]))
    output(model)
    total = seen["enters"] + seen["hidden"].view_as(seen["enters"])
    if sublayers.feed_forward.norm:
        total = F.layer_norm(total, (32,), eps=getattr(model.config, "layer_norm_eps", 1e-12))
    assert torch.allclose(total, seen["residual"], atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("model_type", SUBLAYERS)
def test_new_is_the_identity_and_stirred_trains_everywhere(model_type: str, variant: str) -> None:
    model = adapted(tiny(model_type), variant=variant)
    with model.disable_adapter():
        base = output(model)
    assert torch.equal(output(model), base)
    after = output(stir(model))
    assert (after - base).abs().max() > 1e-3
    after[..., ::2].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in trainable(model).values())
    with model.disable_adapter():
        assert torch.equal(output(model), base)


@pytest.mark.parametrize("model_type", SUBLAYERS)
def test_parameters_follow_the_papers_closed_forms(model_type: str) -> None:
    d, b = 32, 8
    layers = 4 if model_type in ENCODER_DECODERS else 2
    count = {v: sum(p.numel() for p in trainable(adapted(tiny(model_type), variant=v)).values()) for v in VARIANTS}
    pfeiffer = layers * (2 * d * b + b + d)
    assert count == {"houlsby": 2 * pfeiffer, "pfeiffer": pfeiffer, "parallel": pfeiffer}


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown architecture 'bloom'; supported are bart, bert, .*xlm-roberta"):
        adapted(tiny("bloom"))
    reason = Adapter().incompatible_with(
        MethodContext(architecture="bloom", quantization="none", task_type="CAUSAL_LM")
    )
    assert reason is not None
    assert "bloom" in reason
    for known in ("bert", None):
        assert (
            Adapter().incompatible_with(MethodContext(architecture=known, quantization="none", task_type="TOKEN_CLS"))
            is None
        )


def test_a_model_without_the_layers_is_refused_with_what_it_has() -> None:
    with pytest.raises(ValueError, match=r"no module .* in BertEncoder, which has layer, layer.N, layer.N.attention"):
        get_peft_model(tiny("bert").encoder, AdapterConfig())


# --- what PEFT promises ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_and_loaded_gives_the_same_logits_to_the_bit(variant: str, tmp_path: Path) -> None:
    method = Adapter(variant=variant, bottleneck=8, train_layer_norms=True)
    model = stir(adapted(tiny("bert", AutoModelForTokenClassification), "TOKEN_CLS", **method.model_dump()))
    method.save(model, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }
    loaded = method.load(tiny("bert", AutoModelForTokenClassification), tmp_path).eval()
    assert torch.equal(output(loaded), output(model))
    assert not trainable(loaded)
    thrifty = PeftModel.from_pretrained(tiny("bert", AutoModelForTokenClassification), tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(output(thrifty.eval()), output(model))


@pytest.mark.slow  # importing transformers again takes its time
def test_a_fresh_process_gives_the_same_logits(tmp_path: Path) -> None:
    tiny("gpt2").save_pretrained(tmp_path / "base")
    model = stir(adapted(AutoModel.from_pretrained(tmp_path / "base")))
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


def test_two_adapters_do_not_disturb_each_other() -> None:
    model = stir(adapted(tiny("llama"), variant="houlsby"))
    first = output(model)
    model.add_adapter("second", AdapterConfig(variant="parallel", bottleneck=4, scaling=4.0))
    assert torch.equal(output(model), first)
    model.set_adapter("second")
    assert all(".second." in name for name in trainable(model))
    stir(model)
    second = output(model)
    assert not torch.allclose(second, first)
    model.set_adapter("default")
    assert torch.equal(output(model), first)
    model.set_adapter("second")
    model.delete_adapter("default")
    assert torch.equal(output(model), second)
    assert not any("default" in layer.configs for layer in model.modules() if isinstance(layer, AdapterLayer))


def test_active_together_they_are_applied_one_after_the_other() -> None:
    layer, x = AdapterLayer(nn.Identity()), torch.randn(2, 5, 32)
    for name in ("a", "b"):
        layer.add_adapter(name, AdapterConfig(variant="houlsby", bottleneck=8), 32, torch.device("cpu"))
    stir(layer)
    layer.set_adapter("a")
    after_a = layer(x)
    layer.set_adapter("b")
    after_both = layer(after_a)
    layer.set_adapter(["a", "b"])
    assert torch.equal(layer(x), after_both)


def test_of_norms_active_together_the_last_counts() -> None:
    layer, x = AdapterLayer(nn.LayerNorm(32)), torch.randn(2, 5, 32)
    for name in ("a", "b"):
        layer.add_norm(name)
    stir(layer)
    layer.set_adapter("b")
    after_b = layer(x)
    layer.set_adapter(["a", "b"])
    assert torch.equal(layer(x), after_b)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_activation_outlives_its_forward(variant: str) -> None:
    model = adapted(tiny("llama"), variant=variant)
    layers = [layer for layer in model.modules() if isinstance(layer, AdapterLayer)]
    output(model)
    assert all(layer.residual is None for layer in layers)
    with model.disable_adapter():
        output(model)
    assert all(layer.residual is None for layer in layers)


def test_down_starts_as_in_the_reference() -> None:
    layer, width = AdapterLayer(nn.Identity()), 512
    for variant in VARIANTS:
        layer.add_adapter(variant, AdapterConfig(variant=variant), width, torch.device("cpu"))
    spread = {variant: layer.bottleneck_down[variant].weight.std().item() for variant in VARIANTS}
    uniform = (3 * width) ** -0.5  # kaiming_uniform_ with a = sqrt(5), as in LoRA
    assert spread == pytest.approx({"houlsby": 0.02, "pfeiffer": 0.02, "parallel": uniform}, rel=0.02)


def test_unloaded_the_base_is_as_it_was() -> None:
    base = tiny("llama")
    before, names = output(base), list(base.state_dict())
    model = stir(adapted(base, variant="parallel", train_layer_norms=True))
    model.add_adapter("second", AdapterConfig())
    unloaded = model.unload()
    assert torch.equal(output(unloaded), before)
    assert list(unloaded.state_dict()) == names
    assert not any(module._forward_pre_hooks for module in unloaded.modules())


def test_a_copy_stands_on_its_own() -> None:
    model = stir(adapted(tiny("gpt2"), variant="parallel"))
    expected, twin = output(model), copy.deepcopy(model)
    model.unload()
    assert torch.equal(output(twin), expected)


def test_merging_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="cannot be merged"):
        adapted(tiny("bert")).merge_and_unload()


def test_registering_again_changes_nothing() -> None:
    register()
    assert [member.value for member in PeftType].count("BOTTLENECK_ADAPTER") == 1
    assert adapted(tiny("bert")).peft_config["default"].peft_type.value == "BOTTLENECK_ADAPTER"


# --- training --------------------------------------------------------------------------------------------------------

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
def test_every_tensor_trains_over_a_quantized_base_which_stays(model_type: str, precision: str, tmp_path: Path) -> None:
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
    if model_type != "bert":  # whose head has moved
        with model.disable_adapter(), torch.no_grad():
            assert torch.equal(output(model), before)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_checkpointing_changes_no_gradient(model_type: str, variant: str) -> None:
    model = stir(adapted(tiny(model_type), variant=variant)).train()
    output(model)[..., ::2].square().sum().backward()
    plain = {name: p.grad for name, p in trainable(model).items()}
    model.zero_grad()
    model.base_model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    output(model)[..., ::2].square().sum().backward()
    assert all(torch.allclose(p.grad, plain[name], rtol=1e-4, atol=1e-4) for name, p in trainable(model).items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast_computes_the_bottleneck_in_bfloat16_over_float32_weights(variant: str) -> None:
    model = stir(adapted(tiny("llama"), variant=variant))
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
    model = stir(adapted(tiny("llama").bfloat16(), variant=variant, train_layer_norms=True))
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
def test_layer_norms_train_as_copies_and_the_bases_own_stay(model_type: str) -> None:
    model = adapted(tiny(model_type), train_layer_norms=True)
    kept = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    norms = [name for name in trainable(model) if "bottleneck_norm" in name]
    assert len(norms) == sum("norm" in name.lower() for name in kept)
    with model.disable_adapter():
        base = output(model)
    assert torch.equal(output(model), base)
    start = {name: p.detach().clone() for name, p in trainable(model).items()}
    train(model, 2)
    assert not any(torch.equal(p, start[name]) for name, p in trainable(model).items())
    assert all(torch.equal(model.get_parameter(name), p) for name, p in kept.items())
    with model.disable_adapter():
        assert torch.equal(output(model), base)


def test_pfeiffer_reads_through_the_norm_that_trains() -> None:
    """Norms that train in the adapter are as good as norms of the base with the same values."""
    model, base = stir(adapted(tiny("bert"), train_layer_norms=True)), tiny("bert")
    state = {name.removeprefix("base_model.model."): p for name, p in trainable(model).items()}
    norms = {name.replace("bottleneck_norm.default.", ""): p for name, p in state.items() if "norm" in name}
    assert not base.load_state_dict(norms, strict=False).unexpected_keys
    plain = adapted(base)
    plain.base_model.model.load_state_dict({k: p for k, p in state.items() if "norm" not in k}, strict=False)
    assert torch.equal(output(plain), output(model))


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_resolved_settings_mean_what_the_short_ones_did(variant: str) -> None:
    method = Adapter(variant=variant)
    assert method.reduction_factor == 16
    assert Adapter.model_validate(method.model_dump()) == method
    wide = Adapter(variant=variant, bottleneck=64)
    assert Adapter.model_validate(wide.model_dump()) == wide


def test_the_head_is_trained_and_saved_with_the_adapter() -> None:
    plan = TrainingPlan(optimizer_steps=1, task_type="FEATURE_EXTRACTION", head=("pooler",))
    model = Adapter().apply(tiny("bert"), plan)
    assert {name for name in trainable(model) if "bottleneck_" not in name} == {
        f"base_model.model.pooler.modules_to_save.default.dense.{kind}" for kind in ("weight", "bias")
    }


def test_two_widths_or_none_are_refused() -> None:
    with pytest.raises(ValidationError, match="got 4"):
        Adapter(bottleneck=4, reduction_factor=2)
    with pytest.raises(ValidationError, match="give either bottleneck"):
        Adapter(bottleneck=None, reduction_factor=None)


def test_the_width_is_never_nothing() -> None:
    assert Adapter(reduction_factor=64).width(32) == 1


def test_dropout_is_on_the_bottleneck_in_training_only() -> None:
    model = stir(adapted(tiny("bert"), dropout=0.5))
    assert torch.equal(output(model), output(model))
    model.train()
    assert not torch.equal(output(model), output(model))


def test_the_settings_import_neither_torch_nor_peft() -> None:
    program = "import sys, peftlab.methods.adapter; sys.exit(bool({'torch', 'peft'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
