"""Layers whose weights a model reads itself stay in float, found on a tiny model; bitsandbytes and odd inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from bitsandbytes.nn import Int8Params, Linear8bitLt
from torch import nn

from peftlab.loading.direct_reads import directly_read
from peftlab.loading.model import Base, LoadOptions, load_base
from peftlab.models.model import Model, ModelFiles
from peftlab.models.tiny_model import smaller
from peftlab.quantization import QUANTIZATIONS
from peftlab.quantization.four_bit import NF4
from peftlab.quantization.hqq import HQQ
from peftlab.quantization.int8 import Int8
from peftlab.quantization.quantization import quantized_linears
from peftlab.tasks.causal_lm import CausalLM


def decoder(architecture: str) -> Any:
    torch.manual_seed(0)
    config = smaller(transformers.CONFIG_MAPPING[architecture](), 64)
    return transformers.AutoModelForCausalLM.from_config(config)


def load(model: Any, folder: Path, kind: str) -> Base:
    model.save_pretrained(folder)
    files = ModelFiles(folder=folder, source="a test", fingerprint="")
    options = LoadOptions(device=torch.device("cpu"), compute=torch.float32)
    return load_base(Model(id=str(folder)), files, CausalLM(), QUANTIZATIONS[kind](), options)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_gemma_3n_runs_over_packed_weights(quantization: str, tmp_path: Path) -> None:
    """Its predictions are corrected by weights that it clamps and reads itself."""
    base = load(decoder("gemma3n_text"), tmp_path, quantization)
    layers = base.model.config.num_hidden_layers
    read = {
        f"model.layers.{layer}.altup.{name}_coefs" for layer in range(layers) for name in ("correction", "prediction")
    }
    assert set(base.read_directly) == read
    assert set(quantized_linears(base.model)).isdisjoint(read)
    assert len(quantized_linears(base.model)) > 5 * layers
    tokens = torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(0))
    for training in (True, False):
        assert base.model.train(training)(tokens).logits.isfinite().all()


def test_a_model_that_reads_no_weights_keeps_none_in_float() -> None:
    assert directly_read(decoder("llama"), CausalLM(), NF4()) == []


def test_weights_that_read_as_float_are_packed_anyway() -> None:
    model = decoder("jamba")
    assert {name.rpartition(".")[2] for name in directly_read(model, CausalLM(), NF4())} == {"dt_proj"}
    assert directly_read(model, CausalLM(), HQQ()) == []


def test_int8_takes_inputs_of_four_dimensions() -> None:
    """As DeepSeek-V3's latent attention gives it; bitsandbytes alone reads the second dimension as the width."""
    torch.manual_seed(0)
    linear = Linear8bitLt(16, 24, has_fp16_weights=False, threshold=6.0)
    linear.weight = Int8Params(torch.randn(24, 16), requires_grad=False, has_fp16_weights=False).to("cpu")
    model = nn.Sequential(linear).eval()
    input = torch.randn(2, 3, 5, 16)
    with torch.no_grad(), pytest.raises(RuntimeError):
        model(input)
    Int8().prepare(model)
    with torch.no_grad():
        assert torch.equal(model(input), model(input.flatten(1, 2)).unflatten(1, (3, 5)))
