"""Learning rate schedules, step by step next to those of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from pydantic import ValidationError

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


WARMUP, TOTAL = 10, 100
Schedule = Callable[..., torch.optim.lr_scheduler.LambdaLR]


def factors_of_transformers(schedule: Schedule, **arguments: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer, num_warmup_steps=WARMUP, num_training_steps=TOTAL, **arguments)
    factors = []
    for _ in range(TOTAL):
        factors.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return factors


@pytest.mark.parametrize(
    ("settings", "schedule", "arguments"),
    [
        ({}, transformers.get_linear_schedule_with_warmup, {}),
        ({"schedule": "cosine"}, transformers.get_cosine_schedule_with_warmup, {}),
        ({"schedule": "constant"}, transformers.get_constant_schedule_with_warmup, {}),
        (
            {"minimum_learning_rate": 0.1},
            transformers.get_polynomial_decay_schedule_with_warmup,
            {"lr_end": 0.1, "power": 1.0},
        ),
        (
            {"schedule": "cosine", "minimum_learning_rate": 0.1},
            transformers.get_cosine_with_min_lr_schedule_with_warmup,
            {"min_lr_rate": 0.1},
        ),
        *(
            (
                {"schedule": "wsd", "decay_fraction": 0.3, "decay_shape": shape, "minimum_learning_rate": minimum},
                transformers.get_wsd_schedule,
                {"num_decay_steps": 30, "decay_type": shape, "min_lr_ratio": minimum},
            )
            for shape in ("linear", "cosine", "1-sqrt")
            for minimum in (0.0, 0.2)
        ),
    ],
)
def test_after_the_warmup_a_schedule_is_that_of_transformers(
    settings: dict[str, Any], schedule: Schedule, arguments: dict[str, Any]
) -> None:
    """transformers' warm-up begins at 0, or at the minimum of wsd; here a step is never lost to a rate of 0."""
    if schedule is transformers.get_constant_schedule_with_warmup:
        reference = factors_of_transformers(
            lambda o, num_warmup_steps, num_training_steps: schedule(o, num_warmup_steps)
        )
    else:
        reference = factors_of_transformers(schedule, **arguments)
    training = Training.model_validate({"warmup": WARMUP / TOTAL, **settings})
    factors = [learning_rate_factor(step, TOTAL, training) for step in range(TOTAL)]
    assert factors[WARMUP:] == pytest.approx(reference[WARMUP:], abs=1e-12)
    assert factors[:WARMUP] == pytest.approx([(step + 1) / WARMUP for step in range(WARMUP)])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"schedule": "constant", "minimum_learning_rate": 0.1}, "minimum_learning_rate: schedule: constant does not"),
        ({"decay_fraction": 0.5}, "decay_fraction: schedule: linear does not use it; remove it, or set schedule: wsd"),
        ({"schedule": "cosine", "decay_shape": "linear"}, "decay_shape: schedule: cosine does not use it"),
        ({"schedule": "wsd", "warmup": 0.6, "decay_fraction": 0.5}, "more than all steps"),
    ],
)
def test_a_key_that_the_schedule_does_not_use_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Training.model_validate(settings)
