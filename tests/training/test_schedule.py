"""Learning rate schedules."""

import pytest

from peftlab.training.schedule import learning_rate_factor
from peftlab.training.settings import Training


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_learning_rate_warms_up_and_decays_to_near_zero(schedule: str) -> None:
    settings = Training.model_validate({"schedule": schedule, "warmup": 0.1})
    factors = [learning_rate_factor(step, 100, settings) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] == 1.0 if schedule == "constant" else factors[-1] < 0.02
    assert factors[55] == pytest.approx(1.0 if schedule == "constant" else 0.5)
