"""Sublayers of every architecture: where adapters are, and that they start as the identity and train."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from torch.nn import functional as F

from peftlab.methods.adapter import Adapter
from peftlab.methods.ia3 import Ia3
from peftlab.methods.method import Method, MethodContext, TrainingPlan
from peftlab.methods.tuners.adapter import AdapterConfig
from peftlab.models.fact_types import Sublayer, expression
from peftlab.models.facts import facts_of
from tests.methods.adapters import ENCODER_DECODERS, VARIANTS, adapted, output, perturb, tiny, trainable

# Architectures whose adapters were published with the names of the stored facts, and a sample of the others.
EARLIER = [
    *("bart", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "gemma", "gemma2", "gemma3_text"),
    *("gpt2", "llama", "mbart", "mistral", "modernbert", "mt5", "phi3", "qwen2", "qwen3", "roberta", "t5"),
    "xlm-roberta",
]
TRACED = ["exaone4", "gpt_oss", "mpnet", "nomic_bert"]  # norms after both sublayers, experts, BERT's relatives
PARALLEL = ["cohere2", "gpt_neox", "phi"]  # attention and feed-forward block side by side; Phi has one dropout for both
MORE = ["ernie4_5", "glm4", "granite", "ministral3", "olmo2", "olmo3", "qwen3_moe", "roformer", "smollm3", "starcoder2"]
SAVED = ["cohere2", "exaone4", "glm4", "mpnet", "nomic_bert", "olmo2", "qwen3_moe", "roformer", "starcoder2"]
SUBLAYERS = [*EARLIER, *TRACED, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]
WITH_PARALLEL = [*SUBLAYERS, *PARALLEL]


def feed_forward(model_type: str) -> Sublayer:
    return facts_of(model_type).feed_forward[0]


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def layer_of(model: torch.nn.Module, sublayer: Sublayer) -> torch.nn.Module:
    pattern = rf"(.*\.)?(?:{'|'.join(map(expression, sublayer.layers))})"
    return next(m for name, m in model.named_modules() if re.fullmatch(pattern, name))


@pytest.mark.parametrize("model_type", SUBLAYERS)
def test_residual_plus_hidden_is_the_output_of_the_layer(model_type: str) -> None:
    model, sublayer = tiny(model_type), feed_forward(model_type)
    layers = [layer_of(model, sublayer)]
    seen: dict[str, Tensor] = {}
    layers[0].get_submodule(sublayer.residual).register_forward_pre_hook(lambda _, a: seen.update(residual=a[0]))
    layers[0].get_submodule(sublayer.hidden).register_forward_hook(lambda *a: seen.update(hidden=first(a[2])))
    layers[0].register_forward_hook(lambda *a: seen.update(output=first(a[2])))
    output(model)
    total = seen["residual"] + seen["hidden"]
    total = layers[0].get_submodule(sublayer.norm)(total) if sublayer.norm else total
    assert torch.allclose(total, seen["output"], atol=1e-6)


@pytest.mark.parametrize("model_type", sorted({*EARLIER} - ENCODER_DECODERS))
def test_attention_plus_the_input_of_the_layer_is_the_residual(model_type: str) -> None:
    model, attention, after = tiny(model_type), facts_of(model_type).attention[0], feed_forward(model_type)
    layer = layer_of(model, attention)
    seen: dict[str, Tensor] = {}
    layer.register_forward_pre_hook(lambda _, a: seen.update(input=a[0]))
    layer.get_submodule(attention.hidden).register_forward_hook(lambda *a: seen.update(hidden=a[2]))
    source = layer.get_submodule(after.residual)
    source.register_forward_pre_hook(lambda _, a: seen.update(residual=a[0]))
    output(model)
    total = seen["input"] + seen["hidden"].view_as(seen["input"])
    if after.norm:
        total = F.layer_norm(total, (32,), eps=getattr(model.config, "layer_norm_eps", 1e-12))
    assert torch.allclose(total, seen["residual"], atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("model_type", WITH_PARALLEL)
def test_a_new_adapter_is_the_identity_and_a_perturbed_one_trains_everywhere(model_type: str, variant: str) -> None:
    model = adapted(tiny(model_type), variant=variant)
    with model.disable_adapter():
        base = output(model)
    assert torch.equal(output(model), base)
    after = output(perturb(model))
    assert (after - base).abs().max() > 1e-3
    after[..., ::2].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in trainable(model).values())
    with model.disable_adapter():
        assert torch.equal(output(model), base)


@pytest.mark.parametrize("model_type", WITH_PARALLEL)
def test_parameter_counts_follow_the_closed_forms_of_the_papers(model_type: str) -> None:
    d, b = 32, 8
    layers = 4 if model_type in ENCODER_DECODERS else 2
    count = {v: sum(p.numel() for p in trainable(adapted(tiny(model_type), variant=v)).values()) for v in VARIANTS}
    pfeiffer = layers * (2 * d * b + b + d)
    assert count == {"houlsby": 2 * pfeiffer, "pfeiffer": pfeiffer, "parallel": pfeiffer}


@pytest.mark.parametrize("method", [Adapter(bottleneck=8), Ia3()], ids=lambda method: method.kind)
@pytest.mark.parametrize("model_type", ["gpt_oss", *(pytest.param(name, marks=pytest.mark.slow) for name in SAVED)])
def test_a_trained_method_reloads_to_the_bit_and_leaves_the_base_alone(
    model_type: str, method: Method, tmp_path: Path
) -> None:
    base = tiny(model_type)
    before = {id(p): (p, p.detach().clone()) for p in base.parameters()}
    model = perturb(method.apply(base, TrainingPlan(optimizer_steps=1, task_type="FEATURE_EXTRACTION"))).eval()
    expected = output(model)
    assert not torch.equal(expected, output(tiny(model_type)))
    method.save(model, tmp_path)
    assert torch.equal(output(method.load(tiny(model_type), tmp_path).eval()), expected)
    assert all(torch.equal(p, then) for p, then in before.values())


def test_a_module_that_serves_both_sublayers_is_the_end_of_none() -> None:
    facts = facts_of("phi")  # whose layers call resid_dropout for attention and for the feed-forward block
    assert facts.attention[0].hidden == "self_attn.dense"
    assert facts.feed_forward[0].hidden == "mlp"


def test_an_architecture_without_residual_sums_is_refused_with_the_reason() -> None:
    def reason(architecture: str | None) -> str | None:
        return Adapter().incompatible_with(
            MethodContext(architecture=architecture, quantization="none", task_type="TOKEN_CLS")
        )

    refusal = reason("xlm")
    assert refusal is not None
    assert "no feed-forward sublayer of xlm is known" in refusal
    assert reason("bert") is reason(None) is None


def test_a_model_without_the_layers_is_refused_with_its_module_names() -> None:
    with pytest.raises(ValueError, match=r"no module .* in BertEncoder, which has layer, layer.N, layer.N.attention"):
        get_peft_model(tiny("bert").encoder, AdapterConfig())
