"""The statistics of a table, against scipy, figures worked by hand and simulations whose answer is known."""

import itertools
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special, stats
from sklearn.metrics import f1_score

from peftlab.metrics import load_metric
from peftlab.statistics.aggregates import Floats, f1, macro_f1, stacked
from peftlab.statistics.intervals import (
    Estimate,
    Resampled,
    bootstrap,
    compare,
    equivalence,
    expected_best,
    holm,
    mcnemar,
    mean_score,
    minimum_detectable_difference,
    noninferiority,
    randomization_test,
    summarize,
    tied_for_best,
)

SEEDS, EXAMPLES = 5, 200


def same_on_all_examples(scores: list[float]) -> Resampled:
    """Seeds that score the same on every example, which then add no chance: the textbook's t tests are exact."""
    return bootstrap(np.repeat(np.array(scores)[:, None], 20, axis=1), resamples=50)


def right_answers(
    generator: np.random.Generator,
    difficulty: Floats,
    *,
    accuracy: float = 0.8,
    seed_spread: float = 0.05,
    seeds: int = SEEDS,
) -> Resampled:
    """A probit model of what is right: seed + example + seed x example, of unit variance, so `accuracy` is the truth.

    difficulty (examples,), standard normal. A seed_spread of 0.05 moves an accuracy near 0.8 by 1.4 points.
    """
    luck = generator.normal(0, seed_spread, (seeds, 1))
    noise = generator.normal(0, np.sqrt(1 - 0.8**2 - seed_spread**2), (seeds, len(difficulty)))
    right = special.ndtri(accuracy) + 0.8 * difficulty + luck + noise > 0
    return bootstrap(right, resamples=200)


def pair(generator: np.random.Generator, gain: float, seed_spread: float, seeds: int = SEEDS) -> list[Resampled]:
    difficulty = generator.normal(size=EXAMPLES)
    accuracies = (0.8 + gain, 0.8)
    return [right_answers(generator, difficulty, accuracy=a, seed_spread=seed_spread, seeds=seeds) for a in accuracies]


def entities(generator: np.random.Generator, gold: NDArray[np.int64], seed_spread: float) -> Floats:
    """Counts (seeds, examples, 3) for `f1`: seeds differ in what they find and in how much they invent."""
    luck = generator.normal(0, seed_spread, (SEEDS, 1))
    found = generator.binomial(gold, special.ndtr(1.2 + luck) * np.ones(gold.shape))
    predicted = found + generator.poisson(0.2 * np.exp(-luck) * np.ones(gold.shape))
    return np.stack([found, predicted, np.broadcast_to(gold, found.shape)], axis=-1).astype(float)


def true_f1(seed_spread: float) -> float:
    """Mean over seeds of F1 on endless examples, for `entities` with 1.7 of them in each."""
    luck = special.ndtri((np.arange(10_000) + 0.5) / 10_000) * seed_spread
    found = 1.7 * special.ndtr(1.2 + luck)
    return float(np.mean(2 * found / (found + 0.2 * np.exp(-luck) + 1.7)))


def two_level_percentiles(method: Resampled, generator: np.random.Generator) -> tuple[float, float]:
    """The usual bootstrap, for comparison: draw seeds, draw examples, take the 2.5th and 97.5th percentile."""
    draws, seeds = method.replicates.shape
    means = np.take_along_axis(method.replicates, generator.integers(seeds, size=(draws, seeds)), axis=1).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def test_summary_is_the_sample_deviation_and_of_one_seed_there_is_none() -> None:
    scores = [0.91, 0.93, 0.90, 0.95]
    assert summarize(scores).deviation == pytest.approx(stats.tstd(scores))
    assert summarize(scores).mean == pytest.approx(0.9225)
    assert (summarize([0.9]).n, summarize([0.9]).deviation) == (1, None)


@pytest.mark.parametrize(
    "use",
    [
        summarize,
        lambda values: bootstrap([values]),
        lambda values: bootstrap([[[v, 1, 1] for v in values]], f1),
        holm,
        lambda values: mcnemar(values, [1, 0, 1]),
        expected_best,
    ],
)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_not_a_number_is_refused(use: Callable[[list[float]], object], bad: float) -> None:
    use([1.0, 0.0, 1.0])
    with pytest.raises(ValueError, match=r"1 of \d values are NaN or infinite; count diverged runs apart"):
        use([1.0, bad, 0.0])


def test_a_metric_undefined_on_some_resample_is_refused() -> None:
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=r"resampled counts: .* NaN"):
        bootstrap([[[1.0], [0.0]]], lambda sums: sums[..., 0] / sums[..., 0])


@pytest.mark.parametrize(("counts", "found"), [([0.9, 0.8], r"\(2,\)"), ([[]], r"\(1, 0\)"), ([[1.0]], "1 example")])
def test_counts_of_another_shape_are_refused(counts: list[float], found: str) -> None:
    with pytest.raises(ValueError, match=found):
        bootstrap(counts)


def test_without_chance_of_examples_the_interval_is_the_t_interval_over_seeds() -> None:
    scores = [0.90, 0.92, 0.95]
    expected = stats.ttest_1samp(scores, 0).confidence_interval(0.9)
    assert mean_score(same_on_all_examples(scores)).interval(0.9) == pytest.approx((expected.low, expected.high))


def test_without_chance_of_examples_paired_seeds_give_the_paired_t_test() -> None:
    one, two = [0.90, 0.92, 0.95, 0.93], [0.89, 0.92, 0.93, 0.90]
    comparison = compare(same_on_all_examples(one), same_on_all_examples(two), paired_seeds=True)
    assert comparison.p == pytest.approx(stats.ttest_rel(one, two).pvalue)
    assert comparison.difference.value == pytest.approx(0.015)


def test_without_chance_of_examples_separate_seeds_give_welchs_t_test() -> None:
    one, two = [0.90, 0.92, 0.95, 0.93], [0.89, 0.92, 0.83]
    expected = stats.ttest_ind(one, two, equal_var=False)
    comparison = compare(same_on_all_examples(one), same_on_all_examples(two))
    assert comparison.p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert comparison.difference.interval() == pytest.approx((interval.low, interval.high))


def test_one_seed_of_a_mean_has_the_standard_error_of_its_examples_and_says_nothing_of_other_seeds() -> None:
    right = np.random.default_rng(0).random(1500) < 0.9  # 1500: more than one chunk of resamples
    estimate = mean_score(bootstrap([right]))
    assert estimate.standard_error == pytest.approx(stats.sem(right), rel=0.03)
    assert (estimate.seed_variance, estimate.example_degrees) == (None, 1499)
    assert mean_score(bootstrap([right, ~right])).seed_variance == pytest.approx(
        np.var([right.mean(), 1 - right.mean()], ddof=1) / 2
    )


def test_one_seed_of_a_small_test_set_is_not_too_sure() -> None:
    values = [0.0, 1.0, 3.0]
    assert mean_score(bootstrap([values], resamples=40_000)).standard_error == pytest.approx(
        stats.sem(values), rel=0.02
    )


def test_f1_has_the_standard_error_that_scipys_bootstrap_finds() -> None:
    generator = np.random.default_rng(0)
    counts = entities(generator, generator.poisson(1.7, 150), 0.1)[:1]
    columns = tuple(counts[0].T)
    reference = stats.bootstrap(
        columns,
        lambda tp, pred, gold, axis: 2 * tp.sum(axis) / (pred.sum(axis) + gold.sum(axis)),
        paired=True,
        n_resamples=3000,
        rng=generator,
    )
    assert mean_score(bootstrap(counts, f1)).standard_error == pytest.approx(reference.standard_error, rel=0.05)


def test_f1_of_a_method_is_the_mean_of_its_seeds_f1_and_not_of_its_examples() -> None:
    counts = [[[1, 1, 2], [0, 1, 0]], [[2, 2, 2], [0, 0, 0]]]
    assert mean_score(bootstrap(counts, f1)).value == pytest.approx((2 / 4 + 1) / 2)


def test_chance_that_seeds_share_does_not_shrink_with_more_seeds() -> None:
    right = np.random.default_rng(0).random(300) < 0.8
    one, five = mean_score(bootstrap([right])), mean_score(bootstrap([right] * 5))
    assert five.standard_error == pytest.approx(one.standard_error)
    assert five.interval() == pytest.approx(one.interval())


@pytest.mark.parametrize("seed_spread", [0.0, 0.05, 0.2])
def test_a_95_percent_interval_holds_the_truth_95_times_in_100_with_5_seeds(seed_spread: float) -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(600):
        method = right_answers(generator, generator.normal(size=EXAMPLES), seed_spread=seed_spread)
        low, high = mean_score(method).interval()
        held += low <= 0.8 <= high
    assert 0.94 <= held / 600 <= 0.98


def test_percentiles_of_the_two_levels_miss_the_truth_too_often_where_seeds_differ() -> None:
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
def test_the_interval_of_an_f1_holds_the_truth_95_times_in_100(seed_spread: float) -> None:
    generator = np.random.default_rng(1)
    truth, held = true_f1(seed_spread), 0
    for _ in range(500):
        counts = entities(generator, generator.poisson(1.7, EXAMPLES), seed_spread)
        low, high = mean_score(bootstrap(counts, f1, resamples=200)).interval()
        held += low <= truth <= high
    assert 0.93 <= held / 500 <= 0.98


@pytest.mark.parametrize(("seed_spread", "paired_seeds"), [(0.0, False), (0.1, False), (0.1, True)])
def test_equal_methods_are_told_apart_5_times_in_100(seed_spread: float, paired_seeds: bool) -> None:
    generator = np.random.default_rng(2)
    found = sum(compare(*pair(generator, 0.0, seed_spread), paired_seeds=paired_seeds).p < 0.05 for _ in range(500))
    assert 0.025 <= found / 500 <= 0.07


def test_the_smallest_detectable_difference_is_detected_80_times_in_100() -> None:
    generator = np.random.default_rng(3)
    typical = [compare(*pair(generator, 0.0, 0.05)).difference for _ in range(100)]
    gain = float(np.median([minimum_detectable_difference(difference) for difference in typical]))
    found = sum(compare(*pair(generator, gain, 0.05)).p < 0.05 for _ in range(400))
    assert 0.02 < gain < 0.08
    assert 0.75 <= found / 400 <= 0.87


def test_where_only_seeds_differ_the_smallest_detectable_difference_is_that_of_the_t_test() -> None:
    difference = Estimate(0.0, seed_variance=1e-4, seed_degrees=6, example_variance=0.0, example_degrees=99)
    shift = minimum_detectable_difference(difference, level=0.01, power=0.9) / 0.01
    assert stats.nct.sf(stats.t.ppf(0.995, 6), 6, shift) == pytest.approx(0.9, abs=0.002)


def test_where_only_examples_differ_the_smallest_detectable_difference_is_that_of_the_z_test() -> None:
    difference = Estimate(0.0, seed_variance=None, seed_degrees=None, example_variance=1e-4, example_degrees=10**6)
    expected = 0.01 * (special.ndtri(0.975) + special.ndtri(0.8))
    assert minimum_detectable_difference(difference) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("tail", [0.3, 0.025, 1e-9, 1e-90])
def test_a_p_value_is_the_tail_whose_interval_ends_at_the_bound(tail: float) -> None:
    estimate = Estimate(0.5, seed_variance=1e-4, seed_degrees=4, example_variance=1e-4, example_degrees=99)
    bound = 0.5 - estimate.reach(tail)
    assert estimate.p_above(bound) == pytest.approx(tail, rel=1e-6)
    assert estimate.p_below(bound) == pytest.approx(1 - tail)


def test_pairing_by_example_takes_out_what_the_examples_share() -> None:
    generator = np.random.default_rng(0)
    difficulty = generator.normal(size=EXAMPLES)
    one, two = (right_answers(np.random.default_rng(i), difficulty, seed_spread=0.0) for i in (1, 2))
    apart = np.hypot(mean_score(one).standard_error, mean_score(two).standard_error)
    assert compare(one, two).difference.standard_error < 0.6 * apart


def test_a_method_compared_with_itself_does_not_differ() -> None:
    method = right_answers(np.random.default_rng(0), np.zeros(50))
    assert compare(method, method).p == compare(method, method, paired_seeds=True).p == 1.0
    assert compare(method, method, paired_seeds=True).difference.interval() == (0.0, 0.0)
    assert compare(method, method).difference.example_variance == 0.0


def test_methods_that_cannot_be_paired_are_refused() -> None:
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
    with pytest.raises(ValueError, match="the same seeds of both methods, found 3 and 4"):
        compare(method, bootstrap(generator.random((4, 20))), paired_seeds=True)
    with pytest.raises(ValueError, match=r"\(3, 20, 1\) and \(4, 20, 1\)"):
        randomization_test(method, bootstrap(generator.random((4, 20))))


def test_one_seed_of_an_accuracy_is_tested_by_mcnemar() -> None:
    one = bootstrap([[1] * 12 + [0] * 2 + [1] * 30])
    two = bootstrap([[0] * 12 + [1] * 2 + [1] * 30])
    comparison = compare(one, two)
    assert comparison.p == pytest.approx(2 * sum([1, 14, 91]) / 2**14)
    assert comparison.test == "McNemar's exact test"
    assert mcnemar([1, 0], [1, 0]) == 1.0


def test_randomization_agrees_with_mcnemar_where_both_apply() -> None:
    one = bootstrap([[1] * 12 + [0] * 4 + [1] * 30])
    two = bootstrap([[0] * 12 + [1] * 4 + [1] * 30])
    assert randomization_test(one, two) == pytest.approx(mcnemar(one.counts[0, :, 0], two.counts[0, :, 0]), abs=0.01)


def test_randomization_agrees_with_scipys_permutation_test() -> None:
    generator = np.random.default_rng(0)
    one, two = generator.normal(0.3, 1, (2, 1, 12))
    two -= 0.5
    exact = stats.permutation_test(
        (one[0], two[0]), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=5000, vectorized=False
    )
    comparison = compare(bootstrap(one), bootstrap(two))
    assert comparison.p == pytest.approx(exact.pvalue, abs=0.015)
    assert comparison.test == "approximate randomisation"


def test_randomization_of_an_f1_over_two_seeds_agrees_with_trying_all_swaps() -> None:
    generator = np.random.default_rng(4)
    gold = generator.poisson(2, 8)
    one, two = (entities(generator, gold, spread)[:2] for spread in (0.0, 0.8))
    differences = []
    for swap in itertools.product([False, True], repeat=8):
        mask = np.array(swap)[None, :, None]
        left, right = np.where(mask, two, one).sum(axis=1), np.where(mask, one, two).sum(axis=1)
        differences.append(f1(left).mean() - f1(right).mean())
    exact = np.mean(np.abs(differences) >= abs(differences[0]) - 1e-12)
    assert randomization_test(bootstrap(one, f1), bootstrap(two, f1)) == pytest.approx(exact, abs=0.015)
    assert 0.02 < exact < 0.9


def test_randomization_of_a_macro_f1_agrees_with_trying_all_swaps_though_one_model_names_a_class_more() -> None:
    gold = list("aabbabba")
    answers = {"one": list("aabbabbA"), "two": list("abaabbaa")}
    tables = {
        name: load_metric("f1").counts(predictions=given, references=gold)["macro_f1"]
        for name, given in answers.items()
    }
    assert {len(rows[0]) for rows in tables.values()} == {6, 9}
    differences = []
    for swap in itertools.product([False, True], repeat=8):
        pairs = [(b, a) if s else (a, b) for s, a, b in zip(swap, *answers.values(), strict=True)]
        left, right = (f1_score(gold, side, average="macro", zero_division=0) for side in zip(*pairs, strict=True))
        differences.append(left - right)
    exact = np.mean(np.abs(differences) >= abs(differences[0]) - 1e-12)
    one, two = (bootstrap([rows], macro_f1) for rows in tables.values())
    assert randomization_test(one, two) == pytest.approx(exact, abs=0.015)
    assert randomization_test(two, one) == pytest.approx(exact, abs=0.015)
    assert 0.02 < exact < 0.9
    both = bootstrap(stacked(list(tables.values())), macro_f1)
    assert both.scores.tolist() == pytest.approx([one.scores[0], two.scores[0]])


def test_randomization_refuses_a_metric_undefined_on_some_swap() -> None:
    precision = lambda sums: sums[..., 0] / sums[..., 1]  # noqa: E731
    one, two = (bootstrap([counts], precision, resamples=1) for counts in ([[1, 1], [1, 1]], [[0, 1], [0, 1]]))
    one, two = (
        Resampled(np.array([counts], dtype=float), precision, side.scores, side.replicates, 0)
        for counts, side in (([[1, 1], [0, 0]], one), ([[0, 0], [1, 1]], two))
    )
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=r"swapped counts: .* NaN"):
        randomization_test(one, two)


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
def test_holm_refuses_what_is_no_probability(p: float) -> None:
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


@pytest.mark.parametrize("margin", [0.0, -0.01, float("nan")])
@pytest.mark.parametrize("test", [noninferiority, equivalence])
def test_a_margin_is_positive(test: Callable[[Estimate, float], float], margin: float) -> None:
    with pytest.raises(ValueError, match="margin must be a positive"):
        test(Estimate(0.0, 1e-4, 4, 0.0, 99), margin)


def test_a_method_worse_by_just_the_margin_passes_5_times_in_100() -> None:
    generator = np.random.default_rng(5)
    passed = sum(noninferiority(compare(*pair(generator, -0.03, 0.05)).difference, 0.03) < 0.05 for _ in range(400))
    assert 0.025 <= passed / 400 <= 0.08


def test_a_difference_without_chance_is_certain() -> None:
    certain = Estimate(0.1, seed_variance=0.0, seed_degrees=4, example_variance=0.0, example_degrees=99)
    assert (certain.p_above(0), certain.p_below(0), certain.p_above(0.1)) == (0.0, 1.0, 0.5)


def test_the_clearly_worse_is_not_tied_for_best_and_the_near_is() -> None:
    generator = np.random.default_rng(0)
    difficulty = generator.normal(size=EXAMPLES)
    methods = [right_answers(generator, difficulty, accuracy=accuracy) for accuracy in (0.6, 0.8, 0.81)]
    assert tied_for_best(methods) == [False, True, True]
    assert tied_for_best(methods, higher_is_better=False) == [True, False, False]
    assert tied_for_best(methods[:1]) == [True]


def test_the_comparisons_with_the_best_are_corrected_for_their_number() -> None:
    best, near = [0.90, 0.92, 0.94], [0.87, 0.89, 0.85]
    p = compare(same_on_all_examples(near), same_on_all_examples(best)).p
    assert 0.025 < p < 0.05
    methods = [same_on_all_examples(scores) for scores in (best, near, near)]
    assert tied_for_best(methods[:2]) == [True, False]
    assert tied_for_best(methods) == [True, True, True]


def test_the_truly_best_is_in_the_tied_group_95_times_in_100() -> None:
    generator = np.random.default_rng(6)
    held = 0
    for _ in range(200):
        difficulty = generator.normal(size=EXAMPLES)
        accuracies = [0.8, 0.8, 0.8, 0.8, 0.7]
        held += tied_for_best([right_answers(generator, difficulty, accuracy=a, seeds=3) for a in accuracies])[0]
    assert held / 200 >= 0.95


def test_expected_best_is_the_mean_over_all_draws_of_trials() -> None:
    scores = [0.6, 0.9, 0.7, 0.7]
    for trials, best in enumerate(expected_best(scores), start=1):
        assert best == pytest.approx(np.mean([max(drawn) for drawn in itertools.product(scores, repeat=trials)]))


def test_importing_statistics_loads_neither_torch_nor_scipys_slow_part() -> None:
    check = "import sys, peftlab.statistics.intervals; sys.exit(bool({'torch', 'scipy.stats'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
