"""Hypothesis tests between methods scored on the same test examples, and corrections for multiple comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # type: ignore[import-untyped, unused-ignore]  # scipy.stats loads at first use: it takes most of a second
from numpy.typing import ArrayLike

from peftlab.statistics.aggregates import widened
from peftlab.statistics.bootstrap import Resampled
from peftlab.statistics.checks import finite_array, positive_margin
from peftlab.statistics.intervals import Estimate, seed_covariance, two_level_estimate


@dataclass(frozen=True)
class Comparison:
    """Difference between a method and a reference on the same test examples."""

    difference: Estimate
    """Method minus reference."""
    p: float
    """Two-sided, against "no difference"."""
    test: str
    """Name of the test, as footnotes cite it."""


def compare(method: Resampled, reference: Resampled, *, paired_seeds: bool = False) -> Comparison:
    """Compare two methods, paired by example.

    With several seeds, p matches the interval: p < 0.05 exactly if the 95 % interval excludes 0. With one seed each, p
    is McNemar's exact p for accuracy and that of approximate randomization for other metrics.
    `paired_seeds` subtracts seed by seed and halves the degrees of freedom. It pays only if a seed has correlated
    effects on both methods (correlation above 0.3 with 5 seeds, 0.6 with 3). By default the seeds of the two methods
    are independent, and their numbers may differ.

    Simulated size at 0.05 with several seeds, for equal methods: 0.02-0.05, with paired seeds 0.03-0.06.

    Raises ValueError if the resamples or examples do not match, or if only one of the two has a single seed.
    """
    _require_same_resamples(method, reference)
    difference = _difference(method, reference, paired_seeds=paired_seeds)
    if len(method.scores) > 1:
        p = 2 * min(difference.p_above(0), difference.p_below(0))
        return Comparison(difference, p, "two-level t test")
    counts, reference_counts = method.counts[0], reference.counts[0]
    if all(right.shape[1] == 1 and np.isin(right, (0, 1)).all() for right in (counts, reference_counts)):
        return Comparison(difference, mcnemar(counts[:, 0], reference_counts[:, 0]), "McNemar's exact test")
    return Comparison(difference, randomization_test(method, reference), "approximate randomization")


def _require_same_resamples(method: Resampled, reference: Resampled) -> None:
    if method.replicates.shape[0] != reference.replicates.shape[0] or method.seed != reference.seed:
        raise ValueError("the two methods were resampled with different seeds or numbers of resamples")
    examples, reference_examples = method.counts.shape[1], reference.counts.shape[1]
    if examples != reference_examples:
        raise ValueError(f"the methods have {examples} and {reference_examples} test examples: they must be the same")


def _difference(method: Resampled, reference: Resampled, *, paired_seeds: bool) -> Estimate:
    n, m = len(method.scores), len(reference.scores)
    value = float(method.scores.mean() - reference.scores.mean())
    examples = method.counts.shape[1]
    if n == m == 1 or paired_seeds:
        if n != m:
            raise ValueError(f"paired_seeds needs the same seeds of both methods, got {n} and {m}")
        covariance = seed_covariance(method.replicates - reference.replicates)
        return two_level_estimate(value, [method.scores - reference.scores], covariance=covariance, examples=examples)
    if min(n, m) == 1:
        raise ValueError(f"got {n} and {m} seeds: give both methods several seeds, or one seed each")
    shared = np.cov(method.replicates.mean(axis=1), reference.replicates.mean(axis=1))[0, 1]
    covariance = seed_covariance(method.replicates) + seed_covariance(reference.replicates) - 2 * float(shared)
    return two_level_estimate(value, [method.scores, reference.scores], covariance=covariance, examples=examples)


def mcnemar(right: ArrayLike, reference_right: ArrayLike) -> float:
    """Exact two-sided p-value of McNemar's test (1947). Arguments (examples,): 1 if a model is right, 0 if not.

    >>> mcnemar([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0])
    0.0625
    """
    gain = finite_array(right, "right", ndim=1) - finite_array(reference_right, "reference_right", ndim=1)
    won, lost = int((gain > 0).sum()), int((gain < 0).sum())
    return float(scipy.stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0


def randomization_test(method: Resampled, reference: Resampled, *, resamples: int = 9999, seed: int = 0) -> float:
    """Two-sided p-value of approximate randomization (Noreen, 1989; Yeh, 2000, https://aclanthology.org/C00-2137).

    Swaps the counts of the two methods, all seeds together, on a random half of the examples. The null hypothesis
    is about these trained models on other examples. As a test of the methods it rejects too often, because the variance
    between seeds is ignored: simulated size at 0.05 for equal methods is 0.04 if seeds do not differ, 0.1 if their
    standard deviation is 1.4 points, 0.5 if it is 6.
    """
    if method.counts.shape[:2] != reference.counts.shape[:2]:
        raise ValueError(f"counts differ in shape: {method.counts.shape} and {reference.counts.shape}")
    columns = max(method.counts.shape[2], reference.counts.shape[2])
    counts, reference_counts = widened(method.counts, columns), widened(reference.counts, columns)
    seeds, examples, k = counts.shape
    totals = [side.sum(axis=1) for side in (counts, reference_counts)]
    gain = (counts - reference_counts).swapaxes(0, 1).reshape(examples, -1)
    observed = abs(float(method.scores.mean() - reference.scores.mean()))
    generator = np.random.default_rng(seed)
    at_least_as_large = 0
    chunk = max(1, 4_000_000 // examples)
    for start in range(0, resamples, chunk):
        swapped = generator.integers(2, size=(min(chunk, resamples - start), examples), dtype=np.int8)
        moved = (swapped.astype(np.float64) @ gain).reshape(-1, seeds, k)
        swapped_scores = method.score(totals[0] - moved) - reference.score(totals[1] + moved)
        difference = finite_array(swapped_scores, "the metric of swapped counts", ndim=2).mean(axis=1)
        at_least_as_large += int((np.abs(difference) >= observed - 1e-12).sum())  # 1e-12: rounding must not break ties
    return (at_least_as_large + 1) / (resamples + 1)


def holm(p_values: ArrayLike) -> list[float]:
    """Holm's step-down adjusted p-values (1979), in the order given. They control the family-wise error rate.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    p = finite_array(p_values, "p-values", ndim=1)
    if (p < 0).any() or (p > 1).any():
        raise ValueError(f"p-values must lie between 0 and 1, got {p.tolist()}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return [float(value) for value in adjusted]


def noninferiority(difference: Estimate, margin: float, *, higher_is_better: bool = True) -> float:
    """One-sided p-value for "worse than the reference by less than `margin`": one of the two tests of TOST.

    margin: positive, in the unit of the metric.

    >>> worse = Estimate(-0.002, seed_variance=9e-6, seed_degrees=8, example_variance=0.0, example_degrees=99)
    >>> round(noninferiority(worse, margin=0.01), 4), round(noninferiority(worse, margin=0.005), 4)
    (0.0143, 0.1733)
    """
    margin = positive_margin(margin)
    return difference.p_above(-margin) if higher_is_better else difference.p_below(margin)


def equivalence(difference: Estimate, margin: float) -> float:
    """p-value of two one-sided tests (TOST; Schuirmann, 1987) for "within `margin` of the reference"."""
    margin = positive_margin(margin)
    return max(difference.p_above(-margin), difference.p_below(margin))


def tied_for_best(methods: Sequence[Resampled], *, level: float = 0.05, higher_is_better: bool = True) -> list[bool]:
    """True for each method that does not differ significantly from the one with the best mean.

    Each method is compared with the best (`compare`), with Holm's correction; it is tied if its adjusted p is above
    `level`. The truly best method is in the tied group with probability at least 1 - level (multiple comparisons with
    the best, Hsu, 1984, https://doi.org/10.1214/aos/1176346732). Members of the group are not shown to be equal.
    """
    means = [float(method.scores.mean()) * (1 if higher_is_better else -1) for method in methods]
    best = int(np.argmax(means))
    others = [i for i in range(len(methods)) if i != best]
    p_values = [compare(methods[i], methods[best]).p for i in others]
    worse = {i for i, p in zip(others, holm(p_values) if others else [], strict=True) if p <= level}
    return [i not in worse for i in range(len(methods))]
