"""Estimates and intervals, against scipy and simulations whose answer is known."""

import numpy as np
import pytest
from scipy import stats

from peftlab.statistics.aggregates import f1
from peftlab.statistics.bootstrap import bootstrap
from peftlab.statistics.intervals import Estimate, mean_score, summarize
from tests.statistics.simulated import (
    EXAMPLES,
    entities,
    right_answers,
    same_on_all_examples,
    true_f1,
    two_level_percentiles,
)


def test_a_summary_has_the_sample_standard_deviation_and_none_for_one_seed() -> None:
    scores = [0.91, 0.93, 0.90, 0.95]
    assert summarize(scores).std == pytest.approx(stats.tstd(scores))
    assert summarize(scores).mean == pytest.approx(0.9225)
    assert (summarize([0.9]).n, summarize([0.9]).std) == (1, None)


def test_without_example_variance_the_interval_is_the_t_interval_over_seeds() -> None:
    scores = [0.90, 0.92, 0.95]
    expected = stats.ttest_1samp(scores, 0).confidence_interval(0.9)
    assert mean_score(same_on_all_examples(scores)).interval(0.9) == pytest.approx((expected.low, expected.high))


def test_one_seed_has_the_standard_error_of_its_examples_and_no_seed_variance() -> None:
    right = np.random.default_rng(0).random(1500) < 0.9  # 1500: more than one chunk of resamples
    estimate = mean_score(bootstrap([right]))
    assert estimate.standard_error == pytest.approx(stats.sem(right), rel=0.03)
    assert (estimate.seed_variance, estimate.example_degrees) == (None, 1499)
    assert mean_score(bootstrap([right, ~right])).seed_variance == pytest.approx(
        np.var([right.mean(), 1 - right.mean()], ddof=1) / 2
    )


def test_the_standard_error_of_a_small_test_set_is_not_too_small() -> None:
    values = [0.0, 1.0, 3.0]
    assert mean_score(bootstrap([values], resamples=40_000)).standard_error == pytest.approx(
        stats.sem(values), rel=0.02
    )


def test_the_f1_of_a_method_is_the_mean_over_its_seeds_not_over_its_examples() -> None:
    counts = [[[1, 1, 2], [0, 1, 0]], [[2, 2, 2], [0, 0, 0]]]
    assert mean_score(bootstrap(counts, f1)).value == pytest.approx((2 / 4 + 1) / 2)


def test_variance_shared_by_seeds_does_not_shrink_with_more_seeds() -> None:
    right = np.random.default_rng(0).random(300) < 0.8
    one, five = mean_score(bootstrap([right])), mean_score(bootstrap([right] * 5))
    assert five.standard_error == pytest.approx(one.standard_error)
    assert five.interval() == pytest.approx(one.interval())


@pytest.mark.parametrize("seed_spread", [0.0, 0.05, 0.2])
def test_a_95_percent_interval_covers_the_true_value_95_times_in_100_with_5_seeds(seed_spread: float) -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(600):
        method = right_answers(generator, generator.normal(size=EXAMPLES), seed_spread=seed_spread)
        low, high = mean_score(method).interval()
        covered += low <= 0.8 <= high
    assert 0.94 <= covered / 600 <= 0.98


def test_percentiles_of_a_two_level_bootstrap_cover_too_little_if_seeds_differ() -> None:
    generator = np.random.default_rng(0)
    ours = theirs = 0
    for _ in range(500):
        method = right_answers(generator, generator.normal(size=EXAMPLES), seed_spread=0.3, seeds=3)
        low, high = mean_score(method).interval()
        ours += low <= 0.8 <= high
        low, high = two_level_percentiles(method, generator)
        theirs += low <= 0.8 <= high
    assert ours / 500 >= 0.93
    assert theirs / 500 <= 0.88


@pytest.mark.parametrize("seed_spread", [0.0, 0.1])
def test_the_interval_of_an_f1_covers_the_true_value_95_times_in_100(seed_spread: float) -> None:
    generator = np.random.default_rng(1)
    true_value, covered = true_f1(seed_spread), 0
    for _ in range(500):
        counts = entities(generator, generator.poisson(1.7, EXAMPLES), seed_spread)
        low, high = mean_score(bootstrap(counts, f1, resamples=200)).interval()
        covered += low <= true_value <= high
    assert 0.93 <= covered / 500 <= 0.98


@pytest.mark.parametrize("tail", [0.3, 0.025, 1e-9, 1e-90])
def test_a_p_value_is_the_tail_whose_interval_ends_at_the_bound(tail: float) -> None:
    estimate = Estimate(0.5, seed_variance=1e-4, seed_degrees=4, example_variance=1e-4, example_degrees=99)
    bound = 0.5 - estimate.half_width(tail)
    assert estimate.p_above(bound) == pytest.approx(tail, rel=1e-6)
    assert estimate.p_below(bound) == pytest.approx(1 - tail)


def test_p_values_without_variance_are_0_or_1() -> None:
    certain = Estimate(0.1, seed_variance=0.0, seed_degrees=4, example_variance=0.0, example_degrees=99)
    assert (certain.p_above(0), certain.p_below(0), certain.p_above(0.1)) == (0.0, 1.0, 0.5)
