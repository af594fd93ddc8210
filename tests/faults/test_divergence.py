"""Training that diverges: a loss or gradient that is not finite stops it with the last finite checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.conftest import Lab, finished, one_line, steps

EVERY = ("--checkpoint-every", "1")


@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_nan_loss_stops_training_and_the_last_finite_state_is_saved(step: int, lab: Lab, output: Path) -> None:
    words = [*lab.words(output), "--checkpoint-every", "never"]
    done = lab.server.run(*words, faults=[["not_a_number_at_step", step]])
    line = one_line(done.err)
    assert done.code == 3
    assert f"the loss is nan at step {step} (examples rows.jsonl:" in line
    assert f"the state after step {step - 1} is saved in" in line
    assert [path.name for path in steps(output)] == [f"step-{step - 1:08d}"]
    assert lab.server.run(*words, "--resume").code == 0  # bit-identical, since the fault was injected
    assert finished(output).digest == lab.uninterrupted().digest


def test_an_infinite_gradient_never_reaches_the_weights(lab: Lab, output: Path) -> None:
    done = lab.server.run(*lab.words(output), faults=[["infinite_gradient_at_step", 4]])
    assert done.code == 3
    assert "the gradient's norm is inf at step 4" in one_line(done.err)
    assert lab.server.run(*lab.words(output), "--resume").code == 0
    assert finished(output).digest == lab.uninterrupted().digest
