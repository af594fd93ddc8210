"""Accumulation, evaluations and checkpoints do not change the trained weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.conftest import Lab, finished

EVERY = ("--checkpoint-every", "1")


@pytest.mark.parametrize("setting", ["training.accumulation=3", "training.accumulation=4"])
def test_accumulation_changes_no_update(setting: str, lab: Lab) -> None:
    still = ("training.dropout=0.0", "method={kind: lora, rank: 2}")
    one, other = lab.uninterrupted(*still).result, lab.uninterrupted(*still, setting).result
    assert other.curve.losses == pytest.approx(one.curve.losses, abs=1e-5)
    assert other.metrics == one.metrics


@pytest.mark.parametrize("every", [1, 2, 8])
def test_evaluations_and_checkpoints_change_nothing(every: int, lab: Lab, output: Path) -> None:
    last = ("training.keep_best=false",)
    done = lab.server.run(
        *lab.words(output, *last, f"training.evaluate_every={every}"), "--checkpoint-every", str(every)
    )
    assert done.code == 0
    assert finished(output).digest == lab.uninterrupted(*last).digest
