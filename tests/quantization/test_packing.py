"""Packed linear layers: the libraries' own layers as oracles, gradients, memory of the graph, loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import transformers
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from torch import Tensor, nn

from peftlab.errors import UserError
from peftlab.loading.model import LoadOptions, load_base
from peftlab.models.model import Model, ModelFiles
from peftlab.quantization import QUANTIZATIONS
from peftlab.quantization.hqq import HQQ
from peftlab.quantization.packing.hqq import HqqPacking
from peftlab.quantization.packing.packed_linear import PackedLinear, Packing, packed_linears
from peftlab.quantization.quantization import quantized_linears
from peftlab.tasks import Task
from peftlab.tasks.causal_lm import CausalLM
from peftlab.tasks.seq2seq import Seq2Seq
from peftlab.tasks.sequence_classification import SequenceClassification
from tests.contract.bases import PACKED, tiny

CPU = torch.device("cpu")


def packed(packing: Packing, linear: nn.Linear) -> PackedLinear:
    layer = PackedLinear.replace(linear, packing, torch.float32)
    layer.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
    layer.pack(linear.weight)
    return layer


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(128, 96)


def packings() -> list[Packing]:
    formats: list[Packing] = [HqqPacking(bits, 64) for bits in (2, 3, 4, 8)]
    if "torchao_int8" in PACKED:
        from peftlab.quantization.packing.torchao import Int8Packing

        formats.append(Int8Packing())
    return formats


def load(folder: Path, kind: str, task: Task | None = None, **settings: Any) -> Any:
    files = ModelFiles(folder=folder, source="a test", fingerprint="")
    quantization = QUANTIZATIONS[kind](**settings)
    options = LoadOptions(device=CPU, compute=torch.float32)
    return load_base(Model(id=str(folder)), files, task or CausalLM(), quantization, options).model


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_hqq_computes_what_the_layer_of_the_library_computes(bits: int) -> None:
    layer, input = linear(), torch.randn(5, 128)
    settings = BaseQuantizeConfig(nbits=bits, group_size=64)
    settings.pop("offload_meta")
    oracle = HQQLinear(None, {**settings, "offload_meta": False}, compute_dtype=torch.float32, device="cpu")
    oracle.quantize(layer.weight.detach(), **settings)
    oracle.bias = layer.bias.detach()
    assert torch.equal(packed(HqqPacking(bits, 64), layer)(input), oracle(input))


def test_torchao_int8_computes_what_the_layer_of_the_library_computes() -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="needs the extra torchao")
    from peftlab.quantization.packing.torchao import Int8Packing

    layer, input = linear(), torch.randn(5, 128)
    ours = packed(Int8Packing(), layer)
    quantization.quantize_(layer, quantization.Int8WeightOnlyConfig(version=2))
    assert torch.equal(ours(input), layer(input))
    assert torch.equal(ours.weight, layer.weight.dequantize())


@pytest.mark.parametrize("packing", packings(), ids=lambda packing: f"{type(packing).__name__}{packing.bits}")
def test_the_gradient_is_that_of_the_unpacked_weight_and_the_graph_keeps_none(packing: Packing) -> None:
    layer, input = packed(packing, linear()), torch.randn(5, 128, requires_grad=True)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = layer(input)
    (gradient,) = torch.autograd.grad(output.square().sum(), input)
    assert max(kept, default=0) < layer.weight.numel()
    weight = layer.weight
    expected = 2 * (input @ weight.T + layer.bias) @ weight
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("packing", packings(), ids=lambda packing: f"{type(packing).__name__}{packing.bits}")
def test_the_layout_without_values_is_that_of_a_packed_weight(packing: Packing) -> None:
    layer = packed(packing, linear())
    real = {name: (tuple(p.shape), p.dtype) for name, p in layer.named_parameters() if name != "bias"}
    assert real == packing.layout((96, 128), torch.float32)
    assert layer.constants < set(real)
    assert all(not p.requires_grad and not p.is_inference() for p in layer.parameters())


@pytest.mark.parametrize("kind", PACKED)
def test_a_base_is_packed_the_same_at_each_load_and_its_output_layer_stays_float(kind: str, tmp_path: Path) -> None:
    tiny("llama", "AutoModelForCausalLM", num_key_value_heads=2, tie_word_embeddings=False).save_pretrained(tmp_path)
    model, again = load(tmp_path, kind), load(tmp_path, kind)
    assert list(quantized_linears(model)) == list(packed_linears(model))
    assert len(packed_linears(model)) == 2 * 7
    assert type(model.lm_head) is nn.Linear
    other = dict(again.named_parameters())
    assert all(torch.equal(parameter, other[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("kind", PACKED)
def test_a_new_head_has_the_values_that_it_has_over_a_float_base(kind: str, tmp_path: Path) -> None:
    tiny("llama", "AutoModelForCausalLM", num_key_value_heads=2).save_pretrained(tmp_path)
    task = SequenceClassification(labels=["no", "yes"])
    heads = [load(tmp_path, each, task).score.weight for each in (kind, "none")]
    assert torch.equal(*heads)


def test_what_transformers_keeps_in_float32_is_not_packed(tmp_path: Path) -> None:
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
    tiny("t5", "AutoModelForSeq2SeqLM", **sizes).save_pretrained(tmp_path)
    packed = {name.rpartition(".")[2] for name in packed_linears(load(tmp_path, "hqq", Seq2Seq()))}
    assert packed == {"q", "k", "v", "o", "wi"}


def test_a_layer_whose_weights_do_not_divide_into_groups_stays_float(tmp_path: Path) -> None:
    # 72 x 24 weights are 27 groups of 64: 4-bit codes are stored in pairs of groups.
    tiny("llama", "AutoModelForCausalLM", hidden_size=24, intermediate_size=72).save_pretrained(tmp_path)
    model = load(tmp_path, "hqq")
    assert {name.rpartition(".")[2] for name in packed_linears(model)} == set()
    assert len(packed_linears(load(tmp_path, "hqq", group_size=16))) == 2 * 7


def test_the_transposed_weights_of_gpt2_are_packed(tmp_path: Path) -> None:
    tiny("gpt2", "AutoModelForCausalLM", n_embd=64, n_layer=2, n_head=4).save_pretrained(tmp_path)
    tokens = torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(0))
    model, float_model = load(tmp_path, "hqq", bits=8), load(tmp_path, "none")
    assert len(packed_linears(model)) == 2 * 4
    with torch.no_grad():
        logits, expected = model(tokens).logits, float_model(tokens).logits
    assert float((logits - expected).abs().max() / expected.abs().max()) < 0.02


class Missing(HQQ):
    """HQQ on a machine that lacks its library."""

    library: ClassVar[str | None] = "no_such_library"


def test_a_missing_library_is_one_line_with_the_extra_that_installs_it() -> None:
    with pytest.raises(UserError) as caught:
        Missing().config([], torch.float32)
    assert str(caught.value) == (
        'quantization: hqq needs the library no_such_library: pip install "peftlab[no_such_library]"'
    )


def test_a_packing_config_has_no_values_that_json_lacks() -> None:
    config: Any = HQQ().config(["lm_head"], torch.float32)
    assert config.to_dict() == {"quant_method": "peftlab-packing", "keep": ["lm_head"]}
    assert transformers.LlamaConfig(quantization_config=config).to_json_string()
