"""F1-F3: killed wherever, a run goes on to the bits of the run that was not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.bases import Combination
from tests.faults.conftest import COMBINATIONS, KILLED, Lab, finished, sets, steps


@pytest.mark.parametrize("combination", COMBINATIONS, ids=str)
def test_killed_in_mid_epoch_every_method_goes_on_to_the_same_bits(
    combination: Combination, lab: Lab, output: Path
) -> None:
    """20 examples in batches of 4: step 4 is in the middle of the first epoch, an evaluation behind it."""
    recipe = sets(combination)
    whole = lab.whole(*recipe)
    words = [*lab.words(output, *recipe), "--checkpoint-every", "1", "--resume"]
    killed = lab.server.run(*words, faults=[["kill_at_step", 5]])
    assert killed.code == KILLED, killed.err
    assert [path.name for path in steps(output)] == ["step-00000003", "step-00000004"]
    resumed = lab.server.run(*words)
    assert resumed.code == 0, resumed.err
    assert "resume     from step 4" in resumed.out
    after = finished(output)
    assert (after.digest, after.predictions) == (whole.digest, whole.predictions)
    assert after.result.metrics == whole.result.metrics
    assert after.result.curve == whole.result.curve
    assert [resume.step for resume in after.result.resumes] == [4]
