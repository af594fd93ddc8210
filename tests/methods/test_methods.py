"""Full fine-tuning, IA3, BitFit, the head alone and the gate to PEFT: what each trains, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from peftlab.errors import UserError
from peftlab.methods import METHODS, TrainingPlan
from peftlab.methods.bitfit import BIAS_FREE, BitFit
from peftlab.methods.full import Full
from peftlab.methods.head import Head
from peftlab.methods.ia3 import SCALED_LAYERS, Ia3
from peftlab.methods.method import MethodContext
from peftlab.methods.peft import IMPLEMENTED, QUANTIZED, REFUSED, Peft
from tests.contract import bases
from tests.contract.bases import tiny
from tests.sampling import slow_after

TAGS = TrainingPlan(optimizer_steps=4, task_type="TOKEN_CLS", head=("classifier",), longest_input=11)
TEXT = TrainingPlan(optimizer_steps=4, task_type="CAUSAL_LM")


def bert() -> PreTrainedModel:
    model = tiny("bert", "AutoModelForTokenClassification", num_labels=3)
    model.requires_grad_(False)
    return model


def logits(model: nn.Module) -> Tensor:
    return bases.logits(model, "encoder")


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", slow_after(3, METHODS))
def test_a_methods_settings_import_neither_torch_nor_peft(kind: str) -> None:
    module = METHODS[kind].__module__
    program = f"import sys, {module}; sys.exit(bool({{'torch', 'peft', 'transformers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


# --- IA3 -------------------------------------------------------------------------------------------------------------


def test_ia3_scales_keys_values_and_the_feed_forward_block_alone() -> None:
    model = Ia3().apply(bert(), TAGS)
    scales = {name.partition("layer.1.")[2]: p.numel() for name, p in trainable(model).items() if ".layer.1." in name}
    assert scales == {
        "attention.self.key.ia3_l.default": 64,
        "attention.self.value.ia3_l.default": 64,
        "output.dense.ia3_l.default": 128,
    }
    assert torch.equal(logits(model), logits(bert()))


@pytest.mark.parametrize("architecture", sorted(SCALED_LAYERS))
def test_ia3_finds_its_places_in_every_architecture_it_knows(architecture: str) -> None:
    own: dict[str, Any] = {"n_layers": 2, "n_heads": 4, "dim": 64} if architecture == "distilbert" else {}
    if architecture in ("t5", "mt5"):
        own = {"num_layers": 2, "num_decoder_layers": 2}
    if architecture in ("bart", "mbart"):
        own = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    if architecture == "albert":
        own = {"num_hidden_groups": 2}
    model = Ia3().apply(
        tiny(architecture, "AutoModel", **own), TrainingPlan(optimizer_steps=4, task_type="FEATURE_EXTRACTION")
    )
    count = len(trainable(model))
    blocks = {"bart": 6, "mbart": 6, "t5": 6, "mt5": 6}.get(architecture, 2)  # an attention over the encoder's output
    fused = len(SCALED_LAYERS[architecture][0]) == 1
    feed_forward = 4 if blocks == 6 else 2
    assert count == blocks * (1 if fused else 2) + feed_forward


def test_ia3_scales_are_not_decayed_towards_zero() -> None:
    method = Ia3()
    model = method.apply(bert(), TAGS)
    optimizer = torch.optim.AdamW(method.parameter_groups(model, 1e-2, 0.5))
    for p in trainable(model).values():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert all(torch.equal(p, torch.ones_like(p)) for name, p in trainable(model).items() if "ia3" in name)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trainable(model))


def test_ia3_in_an_unknown_architecture_asks_for_names() -> None:
    reason = Ia3().incompatible_with(MethodContext(architecture="gptj", quantization="none", task_type="CAUSAL_LM"))
    assert reason is not None
    assert "set targets" in reason
    named = Ia3(targets=["k_proj", "v_proj"], input_targets=["fc_out"])
    assert (
        named.incompatible_with(MethodContext(architecture="gptj", quantization="none", task_type="CAUSAL_LM")) is None
    )
    base = tiny("gptj", "AutoModelForCausalLM", rotary_dim=8)
    assert len(trainable(named.apply(base, TEXT))) == 6
    with pytest.raises(UserError, match=r"method.targets: 'nowhere' matches no linear layer"):
        Ia3(targets=["nowhere"]).apply(tiny("gptj", "AutoModelForCausalLM", rotary_dim=8), TEXT)


# --- BitFit ----------------------------------------------------------------------------------------------------------


def test_bitfit_trains_every_bias_and_no_weight() -> None:
    base = bert()
    biases = {name for name, _ in base.named_parameters() if name.endswith(".bias")}
    assert set(trainable(BitFit().apply(base, TAGS))) == biases | {"classifier.weight"}


def test_bitfit_trains_biases_that_are_no_layers() -> None:
    model = BitFit().apply(tiny("deberta", "AutoModelForTokenClassification", num_labels=3), TAGS)
    of_attention = {name for name in trainable(model) if ".0.attention.self." in name}
    assert {name.rpartition(".")[2] for name in of_attention} == {"q_bias", "v_bias"}


@pytest.mark.parametrize("architecture", sorted(BIAS_FREE))
def test_a_base_without_biases_is_refused(architecture: str) -> None:
    reason = BitFit().incompatible_with(
        MethodContext(architecture=architecture, quantization="none", task_type="CAUSAL_LM")
    )
    assert reason is not None
    assert architecture in reason
    base = tiny(architecture, "AutoModel", num_labels=3)
    with pytest.raises(UserError, match="has none"):
        BitFit().apply(base, TEXT)


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_in_bfloat16_over_a_quantised_base_biases_stay_float32(precision: str, tmp_path: Path) -> None:
    bases.make_bases(tmp_path)
    method = BitFit()
    model = method.apply(bases.load(tmp_path, "encoder", precision), TAGS)
    optimizer = torch.optim.AdamW(method.parameter_groups(model, 1e-2, 0.0))
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            bases.loss(model.train()(**bases.inputs("encoder")), "encoder").backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        expected = logits(model)
    assert {p.dtype for p in trainable(model).values()} == {torch.float32}
    (tmp_path / "saved").mkdir()
    method.save(model, tmp_path / "saved")
    loaded = method.load(bases.load(tmp_path, "encoder", precision), tmp_path / "saved")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits(loaded), expected)


# --- the head alone --------------------------------------------------------------------------------------------------


def test_the_head_alone_trains_nothing_but_the_head() -> None:
    assert set(trainable(Head().apply(bert(), TAGS))) == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", "SEQ_2_SEQ_LM"])
def test_without_a_new_head_there_is_none_to_train_alone(task_type: str) -> None:
    assert (
        Head().incompatible_with(MethodContext(architecture="gpt2", quantization="none", task_type="TOKEN_CLS")) is None
    )
    reason = Head().incompatible_with(MethodContext(architecture="gpt2", quantization="none", task_type=task_type))
    assert reason is not None
    with pytest.raises(UserError, match="no new head to train"):
        Head().apply(bert(), TrainingPlan(optimizer_steps=4, task_type=task_type))


# --- the gate to PEFT ------------------------------------------------------------------------------------------------


def open_types() -> list[str]:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    types = {str(getattr(name, "value", name)) for name in PEFT_TYPE_TO_CONFIG_MAPPING}
    return sorted(types - IMPLEMENTED.keys() - REFUSED.keys())


SETTINGS: dict[str, dict[str, Any]] = {  # where the defaults do not fit a model 64 wide
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 2},
    "C3A": {"block_size": 16},
    "FOURIERFT": {"n_frequency": 50},
    "VBLORA": {"vector_length": 16, "num_vectors": 16},
}


@pytest.mark.parametrize("name", slow_after(6, open_types()))
def test_every_type_that_is_let_through_trains_and_reloads(name: str, tmp_path: Path) -> None:
    family = "decoder" if name == "ADAPTION_PROMPT" else "encoder"
    bases.make_bases(tmp_path)
    for precision in ("none", *(("int8", "nf4") if name in QUANTIZED else ())):
        method = Peft(type=name, settings=SETTINGS.get(name, {}))
        torch.manual_seed(3)
        model = method.apply(bases.load(tmp_path, family, precision), bases.plan(family))
        before = {key: p.detach().clone() for key, p in trainable(model).items()}
        optimizer = torch.optim.AdamW(method.parameter_groups(model, 1e-2, 0.0))
        for _ in range(3):
            bases.loss(model.train()(**bases.inputs(family)), family).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert [key for key, p in trainable(model).items() if torch.equal(p, before[key])] == []
        (tmp_path / precision).mkdir()
        method.save(model, tmp_path / precision)
        loaded = method.load(bases.load(tmp_path, family, precision), tmp_path / precision)
        assert (bases.logits(loaded, family) - bases.logits(model, family)).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"type": "VERRA"}, r"unknown 'VERRA' \(did you mean 'VERA'\?\); known are ADAMSS, "),
        ({"type": "vera"}, r"did you mean 'VERA'"),
        ({"type": "LORA"}, "use kind: lora"),
        ({"type": "POLY"}, "needs a task id"),
        ({"type": "VERA", "settings": {"d_initail": 0.1}}, r"VERA has no 'd_initail' \(did you mean 'd_initial'\?\)"),
        ({"type": "VERA", "settings": {"task_type": "SEQ_CLS"}}, "peftlab sets it"),
        ({"type": "LILY", "settings": {"stride_A": 0}}, "LILY: "),
        (
            {"type": "ADAMSS", "settings": {"use_asa": True}},
            "use_asa of ADAMSS is not supported: the training loop",
        ),
    ],
)
def test_the_gate_says_what_is_wrong(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Peft(**given)


def test_the_gate_keeps_types_from_quantised_bases_they_cannot_read() -> None:
    for name in open_types():
        reason = Peft(type=name, settings=SETTINGS.get(name, {})).incompatible_with(
            MethodContext(architecture="bert", quantization="nf4", task_type="TOKEN_CLS")
        )
        assert (reason is None) == (name in QUANTIZED)


def test_what_does_not_fit_the_model_is_said_in_one_line() -> None:
    with pytest.raises(UserError, match=r"method.settings: C3A: The block size should be a factor"):
        Peft(type="C3A").apply(bert(), TAGS)
    with pytest.raises(UserError, match=r"method.targets: 'qurey' matches no linear layer \(did you mean 'query'\?\)"):
        Peft(type="VERA", settings={"target_modules": ["qurey"]}).apply(bert(), TAGS)


@pytest.mark.parametrize("architecture", ["gpt_neox", "bart"])
def test_a_whole_model_is_read_back_whatever_its_files_call_its_tensors(architecture: str, tmp_path: Path) -> None:
    auto = {"gpt_neox": "AutoModelForCausalLM", "bart": "AutoModelForSeq2SeqLM"}[architecture]
    tuned, other = tiny(architecture, auto), tiny(architecture, auto)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.01)
    Full().save(tuned, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert ("embed_out.weight" in file.keys()) == (architecture == "gpt_neox")  # noqa: SIM118
    loaded = Full().load(other, tmp_path)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    for (name, tensor), own in zip(loaded.state_dict().items(), tuned.state_dict().values(), strict=True):
        assert torch.equal(tensor, own), name


def test_a_whole_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    Full().save(tiny("gpt_neox", "AutoModelForCausalLM"), tmp_path)
    larger = tiny("gpt_neox", "AutoModelForCausalLM", num_hidden_layers=3)
    with pytest.raises(UserError, match="does not fit this base"):
        Full().load(larger, tmp_path)
