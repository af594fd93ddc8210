"""Comparisons, corrections and margins, against scipy and simulations whose answer is known."""

import numpy as np
import pytest
from scipy import stats

from peftlab.statistics.bootstrap import bootstrap
from peftlab.statistics.hypothesis_tests import (
    compare,
    equivalence,
    holm,
    mcnemar,
    noninferiority,
    randomization_test,
    tied_for_best,
)
from peftlab.statistics.intervals import mean_score
from tests.statistics.simulated import EXAMPLES, pair, right_answers, same_on_all_examples


def test_without_example_variance_paired_seeds_give_the_paired_t_test() -> None:
    one, two = [0.90, 0.92, 0.95, 0.93], [0.89, 0.92, 0.93, 0.90]
    comparison = compare(same_on_all_examples(one), same_on_all_examples(two), paired_seeds=True)
    assert comparison.p == pytest.approx(stats.ttest_rel(one, two).pvalue)
    assert comparison.difference.value == pytest.approx(0.015)


def test_without_example_variance_independent_seeds_give_welchs_t_test() -> None:
    one, two = [0.90, 0.92, 0.95, 0.93], [0.89, 0.92, 0.83]
    expected = stats.ttest_ind(one, two, equal_var=False)
    comparison = compare(same_on_all_examples(one), same_on_all_examples(two))
    assert comparison.p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert comparison.difference.interval() == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize(("seed_spread", "paired_seeds"), [(0.0, False), (0.1, False), (0.1, True)])
def test_equal_methods_differ_significantly_5_times_in_100(seed_spread: float, paired_seeds: bool) -> None:
    generator = np.random.default_rng(2)
    rejected = sum(compare(*pair(generator, 0.0, seed_spread), paired_seeds=paired_seeds).p < 0.05 for _ in range(500))
    assert 0.025 <= rejected / 500 <= 0.07


def test_pairing_by_example_removes_the_variance_that_the_examples_share() -> None:
    generator = np.random.default_rng(0)
    difficulty = generator.normal(size=EXAMPLES)
    one, two = (right_answers(np.random.default_rng(i), difficulty, seed_spread=0.0) for i in (1, 2))
    unpaired = np.hypot(mean_score(one).standard_error, mean_score(two).standard_error)
    assert compare(one, two).difference.standard_error < 0.6 * unpaired


def test_a_method_compared_with_itself_does_not_differ() -> None:
    method = right_answers(np.random.default_rng(0), np.zeros(50))
    assert compare(method, method).p == compare(method, method, paired_seeds=True).p == 1.0
    assert compare(method, method, paired_seeds=True).difference.interval() == (0.0, 0.0)
    assert compare(method, method).difference.example_variance == 0.0


def test_methods_that_cannot_be_paired_are_rejected() -> None:
    generator = np.random.default_rng(0)
    method = bootstrap(generator.random((3, 20)))
    for other, words in [
        (bootstrap(generator.random((3, 21))), "20 and 21 test examples"),
        (bootstrap(generator.random((3, 20)), seed=1), "different seeds"),
        (bootstrap(generator.random((3, 20)), resamples=100), "numbers of resamples"),
        (bootstrap(generator.random((1, 20))), "3 and 1 seeds"),
    ]:
        with pytest.raises(ValueError, match=words):
            compare(method, other)
    with pytest.raises(ValueError, match="the same seeds of both methods, got 3 and 4"):
        compare(method, bootstrap(generator.random((4, 20))), paired_seeds=True)
    with pytest.raises(ValueError, match=r"\(3, 20, 1\) and \(4, 20, 1\)"):
        randomization_test(method, bootstrap(generator.random((4, 20))))


def test_accuracies_of_one_seed_each_are_compared_by_mcnemars_test() -> None:
    one = bootstrap([[1] * 12 + [0] * 2 + [1] * 30])
    two = bootstrap([[0] * 12 + [1] * 2 + [1] * 30])
    comparison = compare(one, two)
    assert comparison.p == pytest.approx(2 * sum([1, 14, 91]) / 2**14)
    assert comparison.test == "McNemar's exact test"
    assert mcnemar([1, 0], [1, 0]) == 1.0


def test_holm_steps_down_as_in_the_paper() -> None:
    p = [0.012, 0.001, 0.04, 0.012, 0.9]
    assert holm(p) == pytest.approx([0.048, 0.005, 0.08, 0.048, 0.9])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    for level in (0.005, 0.04, 0.05, 0.09):
        rejected: set[int] = set()
        for step, i in enumerate(np.argsort(p, kind="stable")):
            if p[i] > level / (len(p) - step):
                break
            rejected.add(int(i))
        assert {i for i, adjusted in enumerate(holm(p)) if adjusted <= level + 1e-12} == rejected


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_holm_rejects_values_outside_0_to_1(p: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.5, p])


def test_noninferiority_and_equivalence_are_scipys_one_sided_t_tests_at_the_margin() -> None:
    one, two = [0.90, 0.92, 0.95, 0.93], [0.91, 0.92, 0.94, 0.94]
    methods = same_on_all_examples(one), same_on_all_examples(two)
    difference = compare(*methods, paired_seeds=True).difference
    reverse = compare(*methods[::-1], paired_seeds=True).difference
    gaps = np.subtract(one, two)
    above = stats.ttest_1samp(gaps, -0.02, alternative="greater").pvalue
    below = stats.ttest_1samp(gaps, 0.02, alternative="less").pvalue
    assert noninferiority(difference, 0.02) == pytest.approx(above)
    assert noninferiority(difference, 0.02, higher_is_better=False) == pytest.approx(below)
    assert equivalence(difference, 0.02) == equivalence(reverse, 0.02) == pytest.approx(max(above, below))
    assert above != pytest.approx(below)


def test_a_method_worse_by_exactly_the_margin_is_noninferior_5_times_in_100() -> None:
    generator = np.random.default_rng(5)
    passed = sum(noninferiority(compare(*pair(generator, -0.03, 0.05)).difference, 0.03) < 0.05 for _ in range(400))
    assert 0.025 <= passed / 400 <= 0.08


def test_a_clearly_worse_method_is_not_tied_for_best_and_a_close_one_is() -> None:
    generator = np.random.default_rng(0)
    difficulty = generator.normal(size=EXAMPLES)
    methods = [right_answers(generator, difficulty, accuracy=accuracy) for accuracy in (0.6, 0.8, 0.81)]
    assert tied_for_best(methods) == [False, True, True]
    assert tied_for_best(methods, higher_is_better=False) == [True, False, False]
    assert tied_for_best(methods[:1]) == [True]


def test_comparisons_with_the_best_are_corrected_for_their_number() -> None:
    best, near = [0.90, 0.92, 0.94], [0.87, 0.89, 0.85]
    p = compare(same_on_all_examples(near), same_on_all_examples(best)).p
    assert 0.025 < p < 0.05
    methods = [same_on_all_examples(scores) for scores in (best, near, near)]
    assert tied_for_best(methods[:2]) == [True, False]
    assert tied_for_best(methods) == [True, True, True]


def test_the_truly_best_method_is_in_the_tied_group_95_times_in_100() -> None:
    generator = np.random.default_rng(6)
    tied = 0
    for _ in range(200):
        difficulty = generator.normal(size=EXAMPLES)
        accuracies = [0.8, 0.8, 0.8, 0.8, 0.7]
        tied += tied_for_best([right_answers(generator, difficulty, accuracy=a, seeds=3) for a in accuracies])[0]
    assert tied / 200 >= 0.95
