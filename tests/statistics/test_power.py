"""The minimum detectable difference, against the power of textbook tests and a simulation."""

import numpy as np
import pytest
from scipy import special, stats

from peftlab.statistics.hypothesis_tests import compare
from peftlab.statistics.intervals import Estimate
from peftlab.statistics.power import minimum_detectable_difference
from tests.statistics.simulated import pair


def test_the_minimum_detectable_difference_is_detected_80_times_in_100() -> None:
    generator = np.random.default_rng(3)
    typical = [compare(*pair(generator, 0.0, 0.05)).difference for _ in range(100)]
    gain = float(np.median([minimum_detectable_difference(difference) for difference in typical]))
    detected = sum(compare(*pair(generator, gain, 0.05)).p < 0.05 for _ in range(400))
    assert 0.02 < gain < 0.08
    assert 0.75 <= detected / 400 <= 0.87


def test_without_example_variance_the_minimum_detectable_difference_is_that_of_the_t_test() -> None:
    difference = Estimate(0.0, seed_variance=1e-4, seed_degrees=6, example_variance=0.0, example_degrees=99)
    shift = minimum_detectable_difference(difference, level=0.01, power=0.9) / 0.01
    assert stats.nct.sf(stats.t.ppf(0.995, 6), 6, shift) == pytest.approx(0.9, abs=0.002)


def test_without_seed_variance_the_minimum_detectable_difference_is_that_of_the_z_test() -> None:
    difference = Estimate(0.0, seed_variance=None, seed_degrees=None, example_variance=1e-4, example_degrees=10**6)
    expected = 0.01 * (special.ndtri(0.975) + special.ndtri(0.8))
    assert minimum_detectable_difference(difference) == pytest.approx(expected, rel=1e-4)
