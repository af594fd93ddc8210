"""Settings of bottleneck adapters."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError

from peftlab.methods.adapter import Adapter
from peftlab.methods.method import TrainingPlan
from tests.methods.adapters import VARIANTS, adapted, output, perturb, tiny, trainable


@pytest.mark.parametrize("variant", VARIANTS)
def test_resolved_settings_equal_the_short_ones(variant: str) -> None:
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


def test_two_widths_or_no_width_are_refused() -> None:
    with pytest.raises(ValidationError, match="got 4"):
        Adapter(bottleneck=4, reduction_factor=2)
    with pytest.raises(ValidationError, match="give either bottleneck"):
        Adapter(bottleneck=None, reduction_factor=None)


def test_the_width_is_at_least_one() -> None:
    assert Adapter(reduction_factor=64).width(32) == 1


def test_dropout_applies_in_training_only() -> None:
    model = perturb(adapted(tiny("bert"), dropout=0.5))
    assert torch.equal(output(model), output(model))
    model.train()
    assert not torch.equal(output(model), output(model))


def test_the_settings_import_neither_torch_nor_peft() -> None:
    program = "import sys, peftlab.methods.adapter; sys.exit(bool({'torch', 'peft'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
