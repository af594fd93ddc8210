"""In bfloat16 every method trains in float32 all the same, over every quantization, and reloads to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from peftlab.doctor import checks
from peftlab.doctor.diagnosis import check_identity
from peftlab.doctor.probe import make_probe_model, make_probe_run
from peftlab.methods import METHODS
from peftlab.models.configs import stored_configs
from peftlab.recipe import Recipe

BERT = "google-bert/bert-base-cased"
# What once went wrong; the others are slow only because they are many.
TRAPS: list[tuple[str, str, dict[str, Any]]] = [
    (BERT, "none", {"kind": "adalora", "initial_rank": 6, "target_rank": 3}),
    (BERT, "int8", {"kind": "adalora", "initial_rank": 6, "target_rank": 3}),
    (BERT, "int8", {"kind": "ia3"}),
    (BERT, "nf4", {"kind": "ia3"}),
    (BERT, "none", {"kind": "p_tuning", "length": 4, "encoder": "mlp"}),
    (BERT, "none", {"kind": "prefix_tuning", "length": 4, "projection": True}),
    (BERT, "none", {"kind": "peft", "type": "LN_TUNING"}),
    ("meta-llama/Llama-3.2-1B", "nf4", {"kind": "peft", "type": "LN_TUNING"}),
    ("microsoft/deberta-v3-base", "int8", {"kind": "bitfit"}),
]
ALL = [
    (base, quantization, {"kind": kind, **sample})
    for base in (BERT, "meta-llama/Llama-3.2-1B", "google-t5/t5-small")
    for quantization in ("none", "int8", "nf4", "fp4")
    for kind, method in METHODS.items()
    for sample in method.test_settings
    # T5 with a head for tokens reads its embeddings under a second name, which PEFT does not train: refused.
    if "train_tokens" not in sample or base != "google-t5/t5-small"
]


def name(combination: object) -> str:
    return (
        "-".join(map(str, combination.values())) if isinstance(combination, dict) else str(combination).split("/")[-1]
    )


@pytest.mark.parametrize(
    ("base", "quantization", "method"),
    [*TRAPS, *(pytest.param(*one, marks=pytest.mark.slow) for one in ALL if one not in TRAPS)],
    ids=name,
)
def test_it_trains_in_float32_and_reloads_to_the_bit(
    base: str, quantization: str, method: dict[str, Any], tmp_path: Path
) -> None:
    recipe = Recipe.model_validate(
        {
            **{"name": "half", "model": base, "data": "none", "task": "token_classification", "method": method},
            **{"quantization": quantization, "training": {"precision": "bfloat16"}},
        }
    )
    values = stored_configs()[base]
    if recipe.incompatible_with(str(values["model_type"])):
        pytest.skip("refused")
    # As wide as in the matrix: narrower, a bottleneck of four units may start with dead units only.
    probe = make_probe_model(recipe, values, tmp_path, device=torch.device("cpu"), width=128)
    run = make_probe_run(probe)
    trainable = {name: p for name, p in run.model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trainable.values()} == {torch.float32}
    assert [name for name in trainable if "ranknum" in name] == []
    found = [check_identity(probe, probe.attached()[1]), *(check(run) for check in CHECKS)]
    assert [check for check in found if check.ok is False] == []
    assert checks.check_reload(run).detail.startswith("bit-identical logits")


CHECKS = (
    *(checks.check_gradients, checks.check_only_the_method, checks.check_after_evaluation),
    *(checks.check_base_unchanged, checks.check_resume),
)
