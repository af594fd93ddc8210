"""Tuner types of PEFT by name: accepted ones train and reload, others are refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from peftlab.errors import UserError
from peftlab.methods.method import MethodContext
from peftlab.methods.peft import IMPLEMENTED, QUANTIZED, REFUSED, Peft
from tests.contract import bases
from tests.methods.tiny_bert import TAGS, bert, trainable
from tests.sampling import slow_after


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
def test_every_accepted_type_trains_and_reloads(name: str, tmp_path: Path) -> None:
    family = "decoder" if name == "ADAPTION_PROMPT" else "encoder"
    bases.make_bases(tmp_path)
    for precision in ("none", *(("int8", "nf4") if name in QUANTIZED else ("hqq",))):
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
def test_a_refused_type_or_setting_has_a_reason(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Peft(**given)


def test_types_that_cannot_read_quantized_weights_are_refused() -> None:
    for name in open_types():
        reason = Peft(type=name, settings=SETTINGS.get(name, {})).incompatible_with(
            MethodContext(architecture="bert", quantization="nf4", task_type="TOKEN_CLS")
        )
        assert (reason is None) == (name in QUANTIZED)
        assert reason is None or "use quantization: hqq or none or torchao_int8, or one of" in reason


def test_a_type_that_does_not_fit_the_model_is_one_error_line() -> None:
    with pytest.raises(UserError, match=r"method.settings: C3A: The block size should be a factor"):
        Peft(type="C3A").apply(bert(), TAGS)
    with pytest.raises(UserError, match=r"method.targets: 'qurey' matches no linear layer \(did you mean 'query'\?\)"):
        Peft(type="VERA", settings={"target_modules": ["qurey"]}).apply(bert(), TAGS)
