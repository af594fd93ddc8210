"""Full fine-tuning: the saved model is read back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from peftlab.errors import UserError
from peftlab.methods.full import Full
from tests.contract.bases import tiny


@pytest.mark.parametrize("architecture", ["gpt_neox", "bart"])
def test_a_full_model_is_read_back_whatever_its_files_call_its_tensors(architecture: str, tmp_path: Path) -> None:
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


def test_a_full_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    Full().save(tiny("gpt_neox", "AutoModelForCausalLM"), tmp_path)
    larger = tiny("gpt_neox", "AutoModelForCausalLM", num_hidden_layers=3)
    with pytest.raises(UserError, match="does not fit this base"):
        Full().load(larger, tmp_path)
