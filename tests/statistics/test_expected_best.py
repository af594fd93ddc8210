"""The expected best of several trials."""

import itertools

import numpy as np
import pytest

from peftlab.statistics.expected_best import expected_best


def test_expected_best_is_the_mean_over_all_draws_of_trials() -> None:
    scores = [0.6, 0.9, 0.7, 0.7]
    for trials, best in enumerate(expected_best(scores), start=1):
        assert best == pytest.approx(np.mean([max(drawn) for drawn in itertools.product(scores, repeat=trials)]))
