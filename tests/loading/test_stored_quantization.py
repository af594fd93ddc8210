"""Checkpoints that are stored quantized: written in the layouts of bitsandbytes, MXFP4 and FP8, and loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from peftlab.errors import UserError
from peftlab.loading.model import Base, LoadOptions, load_base
from peftlab.loading.stored_quantization import DEQUANTIZED, READERS, incompatible_with
from peftlab.models.model import Model, ModelFiles
from peftlab.models.tiny_model import small_config
from peftlab.quantization import QUANTIZATIONS, Quantization
from peftlab.quantization.four_bit import FP4, NF4
from peftlab.quantization.hqq import HQQ
from peftlab.quantization.int8 import Int8
from peftlab.quantization.none import NoQuantization
from peftlab.quantization.packing.quantizer import METHOD
from peftlab.quantization.quantization import quantized_linears
from peftlab.tasks import Task
from peftlab.tasks.causal_lm import CausalLM
from peftlab.tasks.sequence_classification import SequenceClassification
from tests.contract.bases import tiny

CPU, FLOAT = torch.device("cpu"), NoQuantization()
CHAT, CLASSES = CausalLM(), SequenceClassification(labels=["no", "yes"])
NF4_STORED = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def load(folder: Path, quantization: Quantization, task: Task = CHAT) -> Any:
    return load_all(folder, quantization, task).model


def load_all(folder: Path, quantization: Quantization, task: Task = CHAT) -> Base:
    files = ModelFiles(folder=folder, source="a test", fingerprint="")
    options = LoadOptions(device=CPU, compute=torch.float32)
    return load_base(Model(id=str(folder)), files, task, quantization, options)


def logits(model: Any) -> torch.Tensor:
    tokens = torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        result: torch.Tensor = model(tokens).logits
    return result


def llama(folder: Path) -> None:
    """A model in float, at `folder`/float."""
    tiny("llama", "AutoModelForCausalLM", num_key_value_heads=2, tie_word_embeddings=False).save_pretrained(
        folder / "float"
    )


def bitsandbytes(folder: Path, **settings: Any) -> Path:
    """The model as transformers stores it when it is quantized by bitsandbytes."""
    llama(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "float", quantization_config=BitsAndBytesConfig(**settings), device_map={"": CPU}
    )
    model.save_pretrained(folder / "stored")
    return folder / "stored"


@pytest.mark.parametrize(
    ("settings", "quantization"),
    [
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, NF4(double_quantization=False)),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True}, FP4()),
        ({"load_in_8bit": True}, Int8()),
    ],
    ids=["nf4", "fp4", "int8"],
)
def test_a_base_stored_by_bitsandbytes_is_loaded_as_it_is_or_dequantized(
    settings: dict[str, Any], quantization: Quantization, tmp_path: Path
) -> None:
    folder = bitsandbytes(tmp_path, **settings)
    stored, packed_here = load(folder, quantization), load(tmp_path / "float", quantization)
    assert len(quantized_linears(stored)) == 2 * 7
    file = load_file(folder / "model.safetensors")
    for name, parameter in packed_here.named_parameters():
        assert torch.equal(stored.get_parameter(name), parameter), name
        assert torch.equal(file[name], parameter), name
    assert torch.equal(logits(stored), logits(packed_here))
    assert load_all(folder, quantization).dequantized is None
    assert load_all(folder, FLOAT).dequantized == "bitsandbytes"
    dequantized = load(folder, FLOAT)
    assert quantized_linears(dequantized) == {}
    assert not hasattr(dequantized.config, "quantization_config")
    # int8 rounds the inputs as well, and not the dequantized weights
    assert float((logits(dequantized) - logits(stored)).abs().max()) < (0.1 if isinstance(quantization, Int8) else 1e-4)


def test_a_new_head_on_a_stored_base_stays_float(tmp_path: Path) -> None:
    model = load(
        bitsandbytes(tmp_path, load_in_4bit=True, bnb_4bit_quant_type="nf4"), NF4(double_quantization=False), CLASSES
    )
    assert type(model.score) is torch.nn.Linear
    assert model.score.weight.dtype == torch.float32
    assert len(quantized_linears(model)) == 2 * 7


@pytest.mark.parametrize(
    ("stored", "quantization", "says"),
    [
        (NF4_STORED, NF4(), "set quantization: {kind: nf4, double_quantization: false}, or none to dequantize them"),
        (NF4_STORED, Int8(), "stored in nf4: set quantization: {kind: nf4, double_quantization: false}"),
        ({"load_in_8bit": True}, HQQ(), "stored in int8: set quantization: int8, or none to dequantize them"),
        ({"quant_method": "mxfp4"}, NF4(), "stored in mxfp4: set quantization: none, which dequantizes them"),
        ({"quant_method": "gptq", "bits": 4}, FLOAT, "stored in gptq, which the packages gptqmodel and optimum would"),
        ({"quant_method": "hqq"}, HQQ(), "stored in hqq, which the package hqq, without transformers 5 would read"),
        ({"quant_method": "new"}, FLOAT, "stored in new, which nothing known here reads; peftlab does not train over"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_is_refused_with_what_reads_it(
    stored: dict[str, Any], quantization: Quantization, says: str
) -> None:
    for config in ({"quantization_config": stored}, {"text_config": {"quantization_config": stored}}):
        reason = incompatible_with(config, quantization)
        assert says in str(reason)
        assert "\n" not in str(reason)


def test_what_is_stored_in_the_quantization_of_the_recipe_or_in_float_is_accepted() -> None:
    assert incompatible_with({}, HQQ()) is None
    assert incompatible_with({"quantization_config": NF4_STORED}, NF4(double_quantization=False)) is None
    assert incompatible_with({"quantization_config": NF4_STORED}, FLOAT) is None
    assert incompatible_with({"quantization_config": {"quant_method": "mxfp4"}}, FLOAT) is None


def test_every_format_of_transformers_is_read_or_has_a_reader() -> None:
    ours = {METHOD, "gguf", "bitsandbytes_4bit", "bitsandbytes_8bit"}  # GGUF is a file format of its own
    assert set(READERS) | set(DEQUANTIZED) == set(AUTO_QUANTIZATION_CONFIG_MAPPING) - ours


def test_a_gpt_oss_stored_in_mxfp4_is_dequantized(tmp_path: Path) -> None:
    """Blocks of 32 values of four bits, the first in the low half of a byte, and one exponent per block."""
    tiny("gpt_oss", "AutoModelForCausalLM", num_local_experts=4, num_key_value_heads=2, head_dim=16).save_pretrained(
        tmp_path
    )
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    generator, expected = torch.Generator().manual_seed(0), {}
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape  # stored as (experts, outputs, blocks, bytes)
        codes = torch.randint(16, (experts, outputs, inputs // 32, 32), generator=generator, dtype=torch.uint8)
        scales = torch.randint(118, 123, codes.shape[:3], generator=generator, dtype=torch.uint8)
        tensors[f"{name}_blocks"] = codes[..., ::2] | codes[..., 1::2] << 4
        tensors[f"{name}_scales"] = scales
        weight = values[codes.long()] * torch.exp2(scales.float() - 127)[..., None]
        expected[name] = weight.reshape(experts, outputs, inputs).transpose(1, 2)
    save_file(tensors, path, {"format": "pt"})
    edit_config(tmp_path, quantization_config={"quant_method": "mxfp4"})
    model = load(tmp_path, FLOAT)
    assert len(expected) == 2 * 2
    for name, weight in expected.items():
        assert torch.equal(model.get_parameter(name), weight), name
    assert not hasattr(model.config, "quantization_config")


def test_a_base_stored_in_blocks_of_fp8_is_dequantized(tmp_path: Path) -> None:
    llama(tmp_path)
    path = tmp_path / "float" / "model.safetensors"
    tensors, expected = load_file(path), {}
    for name in [name for name in tensors if "proj" in name]:
        blocks = tensors[name].unflatten(0, (-1, 32)).unflatten(2, (-1, 32))
        scale = blocks.abs().amax((1, 3), keepdim=True) / 448
        tensors[name] = (blocks / scale).to(torch.float8_e4m3fn).flatten(2).flatten(0, 1)
        tensors[f"{name}_scale_inv"] = scale[:, 0, :, 0]
        expected[name] = ((blocks / scale).to(torch.float8_e4m3fn).float() * scale).flatten(2).flatten(0, 1)
    save_file(tensors, path, {"format": "pt"})
    edit_config(path.parent, quantization_config={"quant_method": "fp8", "weight_block_size": [32, 32]})
    model = load(path.parent, FLOAT)
    assert len(expected) == 2 * 7
    for name, weight in expected.items():
        assert torch.equal(model.get_parameter(name), weight), name


def test_loading_a_refused_checkpoint_is_one_line(tmp_path: Path) -> None:
    llama(tmp_path)
    edit_config(tmp_path / "float", quantization_config={"quant_method": "awq", "bits": 4})
    with pytest.raises(UserError, match=r"^model: a test: its weights are stored in awq, which the package gptqmodel"):
        load(tmp_path / "float", FLOAT)


def test_the_tiny_model_of_a_stored_checkpoint_is_not_quantized() -> None:
    config = small_config({"model_type": "llama", "quantization_config": NF4_STORED}, 64)
    assert getattr(config, "quantization_config", None) is None


def test_only_bitsandbytes_formats_recognize_their_checkpoints() -> None:
    recognized = {name for name, kind in QUANTIZATIONS.items() if kind(kind=name).stored_as(NF4_STORED) is not None}
    assert recognized == {"nf4"}


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
