"""The statistics of a table of methods: what its numbers say beyond the seeds trained and the test examples scored.

Seeds and examples are crossed: every seed is scored on the same test set. So examples are resampled once for all seeds
and all methods (Owen, 2007, https://doi.org/10.1214/07-AOAS122), and the chance of the seeds is added in closed form:
resampling three to five of them gives a variance too small by (n - 1) / n and normal tails where there are t tails
(Hesterberg, 2015, https://doi.org/10.1080/00031305.2015.1089789), and resampling both at once counts what seed and
example do together three times (Owen). Radiology has this design, few readers and many cases; its variance of a mean is
used here: Obuchowski & Rockette (1995), Hillis (2007, https://doi.org/10.1002/sim.2532).

A diverged run has no score. The caller counts it; every function here refuses NaN rather than drop it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy  # type: ignore[import-untyped, unused-ignore]  # scipy.stats loads at first use: it takes most of a second
from numpy.typing import ArrayLike

from peftlab.statistics.aggregates import Aggregate, Floats, widened


@dataclass(frozen=True)
class Summary:
    """Scores of the seeds that finished. `deviation` is the sample standard deviation (n - 1), None for one seed."""

    n: int
    mean: float
    deviation: float | None


def summarize(scores: ArrayLike) -> Summary:
    """Mean and sample standard deviation over seeds.

    >>> summarize([1, 2, 3])
    Summary(n=3, mean=2.0, deviation=1.0)
    >>> summarize([0.9])
    Summary(n=1, mean=0.9, deviation=None)
    """
    values = _finite(scores, "scores", axes=1)
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Summary(n=len(values), mean=float(np.mean(values)), deviation=deviation)


@dataclass(frozen=True, eq=False)
class Resampled:
    """One method's scores, and what they would have been on other draws of the test examples."""

    counts: Floats  # (seeds, examples, k)
    score: Aggregate
    scores: Floats  # (seeds,) on the test set itself
    replicates: Floats  # (resamples, seeds) on test sets drawn from it, each draw shared by all seeds
    seed: int  # of the draws: equal seeds and equal numbers of examples and resamples give equal draws


def bootstrap(counts: ArrayLike, score: Aggregate | None = None, *, resamples: int = 2000, seed: int = 0) -> Resampled:
    """Resample the test examples, the same draws for every seed and every method.

    counts (seeds, examples, k): what `score` needs, summed over examples, e.g. true positives, predicted and gold
    entities for `f1`. Or (seeds, examples) without `score`, for a metric that is a mean over examples.
    2000 resamples know a standard error to 1.6 % (1 / sqrt(2 * resamples)); no far percentile is read off them.

    >>> bootstrap([[1, 1, 0, 1], [1, 0, 0, 1]]).scores.tolist()
    [0.75, 0.5]
    """
    values = _finite(counts, "counts", axes=2 if score is None else 3)
    seeds, examples = values.shape[:2]
    if examples < 2:
        raise ValueError(f"counts have {examples} example: two or more are needed to tell how far chance goes")
    table = values.reshape(seeds, examples, -1)
    score = score or (lambda sums: sums[..., 0] / examples)
    rows = table.swapaxes(0, 1).reshape(examples, -1)
    generator = np.random.default_rng(seed)
    sums = np.empty((resamples, rows.shape[1]))
    chunk = max(1, 2_000_000 // examples)  # resamples at a time: a few tens of MiB
    for start in range(0, resamples, chunk):
        n = min(chunk, resamples - start)
        drawn = generator.integers(examples, size=(n, examples)) + examples * np.arange(n)[:, None]
        sums[start : start + n] = np.bincount(drawn.ravel(), minlength=n * examples).reshape(n, examples) @ rows
    scores = _finite(score(table.sum(axis=1)), "the metric of the counts", axes=1)
    replicates = _finite(score(sums.reshape(resamples, seeds, -1)), "the metric of resampled counts", axes=2)
    return Resampled(table, score, scores, replicates, seed)


@dataclass(frozen=True)
class Estimate:
    """A score or a difference of scores, and the variance that each of the two sources of chance leaves it.

    The interval's reach r has r^2 = t^2 * seed_variance + u^2 * example_variance, t and u Student's quantiles, each
    with its own degrees of freedom (Howe, 1974, JASA 69:789). The usual single t with merged degrees of freedom
    (Satterthwaite) is shorter and misses more: simulated coverage at 95 % is 0.91-0.95 with 3 seeds.
    """

    value: float
    seed_variance: float | None  # None with one seed: then all below speaks of that model, not of the method
    seed_degrees: float | None
    example_variance: float
    example_degrees: float

    @property
    def standard_error(self) -> float:
        return math.sqrt((self.seed_variance or 0.0) + self.example_variance)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided. It may pass the metric's bounds; tables cut it there, which does not change its coverage.

        Simulated coverage at 95 %, accuracies and F1 on 300 examples, seeds' deviation from 0 to 6 points: 0.94-0.98
        with 3 seeds, 0.93-0.97 with 5, lowest where seeds are skewed. Percentiles of both levels resampled: 0.79-0.99.

        >>> estimate = Estimate(0.8, seed_variance=1e-4, seed_degrees=4, example_variance=0.0, example_degrees=99)
        >>> [round(bound, 4) for bound in estimate.interval()]
        [0.7722, 0.8278]
        """
        reach = self.reach((1 - level) / 2)
        return self.value - reach, self.value + reach

    def p_above(self, bound: float) -> float:
        """One-sided p-value against "the truth is at most `bound`"."""
        return self._tail(self.value - bound)

    def p_below(self, bound: float) -> float:
        """One-sided p-value against "the truth is at least `bound`"."""
        return self._tail(bound - self.value)

    def reach(self, tail: float) -> float:
        """How far from `value` the bound lies that leaves `tail` outside, on one side."""
        by_examples = scipy.special.stdtrit(self.example_degrees, tail) * math.sqrt(self.example_variance)
        if self.seed_variance is None or self.seed_degrees is None:
            return abs(float(by_examples))
        by_seeds = scipy.special.stdtrit(self.seed_degrees, tail) * math.sqrt(self.seed_variance)
        return math.hypot(by_examples, by_seeds)

    def _tail(self, gap: float) -> float:
        """The tail probability whose reach is `gap`; below 1e-100, where the quantiles lose their digits, 0."""
        if gap <= 0:
            return 1 - self._tail(-gap) if gap else 0.5
        lowest, highest = math.log(1e-100), math.log(0.5)
        if self.reach(math.exp(lowest)) <= gap:
            return 0.0
        root = scipy.optimize.brentq(lambda log_tail: self.reach(math.exp(log_tail)) - gap, lowest, highest)
        return math.exp(root)


def mean_score(method: Resampled) -> Estimate:
    """A method's mean score over seeds."""
    return _estimate(float(method.scores.mean()), [method.scores], _between_seeds(method.replicates), method)


@dataclass(frozen=True)
class Comparison:
    """A method against a reference on the same test examples. `p` is two-sided, against "no difference"."""

    difference: Estimate  # method - reference
    p: float
    test: str  # as in a footnote of the table


def compare(method: Resampled, reference: Resampled, *, paired_seeds: bool = False) -> Comparison:
    """The difference of two methods, always paired by example.

    With several seeds p belongs to the interval: p < 0.05 just where the 95 % interval leaves out 0. With one seed each
    it is McNemar's exact p for accuracies and that of approximate randomisation for other metrics.
    `paired_seeds` subtracts seed by seed and halves the degrees of freedom: worth it only if both methods share a
    seed's luck (correlation above 0.3 at 5 seeds, 0.6 at 3). Otherwise seeds count as independent, in any numbers.

    Simulated size at 0.05 with several seeds, for equal methods: 0.02-0.05, with paired seeds 0.03-0.06.
    """
    if method.replicates.shape[0] != reference.replicates.shape[0] or method.seed != reference.seed:
        raise ValueError("the two methods were resampled with different seeds or numbers of resamples")
    if method.counts.shape[1] != reference.counts.shape[1]:
        both = f"{method.counts.shape[1]} and {reference.counts.shape[1]}"
        raise ValueError(f"the methods have {both} test examples: not the same ones")
    n, m = len(method.scores), len(reference.scores)
    value = float(method.scores.mean() - reference.scores.mean())
    if n == m == 1 or paired_seeds:
        if n != m:
            raise ValueError(f"paired_seeds needs the same seeds of both methods, found {n} and {m}")
        differences, replicates = method.scores - reference.scores, method.replicates - reference.replicates
        difference = _estimate(value, [differences], _between_seeds(replicates), method)
    elif min(n, m) == 1:
        raise ValueError(
            f"found {n} and {m} seeds: with one seed nothing is known of its spread; give both two, or both one"
        )
    else:
        shared = np.cov(method.replicates.mean(axis=1), reference.replicates.mean(axis=1))[0, 1]
        between = _between_seeds(method.replicates) + _between_seeds(reference.replicates) - 2 * float(shared)
        difference = _estimate(value, [method.scores, reference.scores], between, method)
    if n > 1:
        p = 2 * min(difference.p_above(0), difference.p_below(0))
        return Comparison(difference, p, "two-level t test")
    pair = method.counts[0], reference.counts[0]
    if all(right.shape[1] == 1 and np.isin(right, (0, 1)).all() for right in pair):
        return Comparison(difference, mcnemar(pair[0][:, 0], pair[1][:, 0]), "McNemar's exact test")
    return Comparison(difference, randomization_test(method, reference), "approximate randomisation")


def _between_seeds(replicates: Floats) -> float:
    """Covariance of two seeds' scores over draws of examples; of one seed its variance. replicates (draws, seeds)."""
    seeds = replicates.shape[1]
    covariance = np.atleast_2d(np.cov(replicates, rowvar=False))
    if seeds == 1:
        return float(covariance[0, 0])
    return float((covariance.sum() - covariance.trace()) / (seeds * (seeds - 1)))


def _estimate(value: float, groups: list[Floats], between: float, method: Resampled) -> Estimate:
    """The spread of seeds (Welch's, for two groups) holds the noise of seed x example too; `between` is the rest."""
    examples = method.counts.shape[1]
    rest = max(between, 0.0) * examples / (examples - 1)
    if len(groups[0]) == 1:
        return Estimate(value, None, None, rest, examples - 1)
    parts = [(float(np.var(scores, ddof=1)) / len(scores), len(scores) - 1) for scores in groups]
    variance = sum(part for part, _ in parts)
    weighted = sum(part**2 / degrees for part, degrees in parts)
    degrees = variance**2 / weighted if weighted else parts[0][1]
    return Estimate(value, variance, degrees, rest, examples - 1)


def mcnemar(right: ArrayLike, reference_right: ArrayLike) -> float:
    """Exact two-sided p-value of McNemar's test (1947) on which test examples two models get right.

    >>> mcnemar([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0])
    0.0625
    """
    gain = _finite(right, "right", axes=1) - _finite(reference_right, "reference_right", axes=1)
    won, lost = int((gain > 0).sum()), int((gain < 0).sum())
    return float(scipy.stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0


def randomization_test(method: Resampled, reference: Resampled, *, resamples: int = 9999, seed: int = 0) -> float:
    """Two-sided p-value of approximate randomisation (Noreen, 1989; Yeh, 2000, https://aclanthology.org/C00-2137).

    Swaps the two methods' counts, all seeds together, on a random half of the examples. It asks whether *these* trained
    models differ on other examples. Read as a test of the methods it is too eager, for the seeds' luck stays in:
    simulated size at 0.05 for equal methods 0.04 if seeds do not differ, 0.1 if by 1.4 points, 0.5 if by 6.
    """
    if method.counts.shape[:2] != reference.counts.shape[:2]:
        raise ValueError(f"counts differ in shape: {method.counts.shape} and {reference.counts.shape}")
    widest = max(method.counts.shape[2], reference.counts.shape[2])
    counts, other_counts = widened(method.counts, widest), widened(reference.counts, widest)
    seeds, examples, k = counts.shape
    totals = [side.sum(axis=1) for side in (counts, other_counts)]
    gain = (counts - other_counts).swapaxes(0, 1).reshape(examples, -1)
    observed = abs(float(method.scores.mean() - reference.scores.mean()))
    generator = np.random.default_rng(seed)
    as_far = 0
    chunk = max(1, 4_000_000 // examples)
    for start in range(0, resamples, chunk):
        swapped = generator.integers(2, size=(min(chunk, resamples - start), examples), dtype=np.int8)
        moved = (swapped.astype(np.float64) @ gain).reshape(-1, seeds, k)
        swapped_scores = method.score(totals[0] - moved) - reference.score(totals[1] + moved)
        difference = _finite(swapped_scores, "the metric of swapped counts", axes=2).mean(axis=1)
        as_far += int((np.abs(difference) >= observed - 1e-12).sum())  # a tie is a tie in spite of rounding
    return (as_far + 1) / (resamples + 1)


def holm(p_values: ArrayLike) -> list[float]:
    """Holm's step-down adjusted p-values (1979), in the order given: they bound the chance of any false claim.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    p = _finite(p_values, "p-values", axes=1)
    if (p < 0).any() or (p > 1).any():
        raise ValueError(f"p-values lie between 0 and 1, found {p.tolist()}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return [float(value) for value in adjusted]


def noninferiority(difference: Estimate, margin: float, *, higher_is_better: bool = True) -> float:
    """One-sided p-value for "no worse than the reference by `margin`", in the metric's unit; half of Schuirmann's TOST.

    >>> worse = Estimate(-0.002, seed_variance=9e-6, seed_degrees=8, example_variance=0.0, example_degrees=99)
    >>> round(noninferiority(worse, margin=0.01), 4), round(noninferiority(worse, margin=0.005), 4)
    (0.0143, 0.1733)
    """
    margin = _positive(margin)
    return difference.p_above(-margin) if higher_is_better else difference.p_below(margin)


def equivalence(difference: Estimate, margin: float) -> float:
    """p-value of the two one-sided tests (Schuirmann, 1987) for "within `margin` of the reference, either way"."""
    margin = _positive(margin)
    return max(difference.p_above(-margin), difference.p_below(margin))


def tied_for_best(methods: Sequence[Resampled], *, level: float = 0.05, higher_is_better: bool = True) -> list[bool]:
    """Which methods cannot be told from the one with the best mean: those to set in bold.

    Each is compared with the best (`compare`), Holm over these; it is tied if its adjusted p is above `level`.
    The truly best method is then in the group with a probability of at least 1 - level (multiple comparisons with the
    best, Hsu, 1984, https://doi.org/10.1214/aos/1176346732). It does not follow that those in the group are equal.
    """
    means = [float(method.scores.mean()) * (1 if higher_is_better else -1) for method in methods]
    best = int(np.argmax(means))
    others = [i for i in range(len(methods)) if i != best]
    p_values = [compare(methods[i], methods[best]).p for i in others]
    worse = {i for i, p in zip(others, holm(p_values) if others else [], strict=True) if p <= level}
    return [i not in worse for i in range(len(methods))]


def minimum_detectable_difference(difference: Estimate, *, level: float = 0.05, power: float = 0.8) -> float:
    """The smallest true difference that a two-sided test at `level` finds with probability `power`, given this design.

    For the strictest step of Holm over m comparisons give `level` = 0.05 / m.

    >>> estimate = Estimate(0.0, seed_variance=1e-4, seed_degrees=8, example_variance=0.0, example_degrees=99)
    >>> round(minimum_detectable_difference(estimate), 4)
    0.032
    """
    reaches = np.array([difference.reach(level / 2)])
    if difference.seed_variance is not None:
        # how far the interval of another draw of seeds would reach: their variance follows a chi-squared distribution
        shares = scipy.stats.chi2.ppf((np.arange(400) + 0.5) / 400, difference.seed_degrees) / difference.seed_degrees
        drawn = [replace(difference, seed_variance=difference.seed_variance * share) for share in shares]
        reaches = np.array([estimate.reach(level / 2) for estimate in drawn])
    error = difference.standard_error
    if not error:
        return 0.0
    return float(
        scipy.optimize.brentq(
            lambda gap: float(np.mean(scipy.special.ndtr((gap - reaches) / error))) - power,
            0.0,
            reaches.max() + 10 * error,
        )
    )


def expected_best(scores: ArrayLike) -> list[float]:
    """Expected best validation score of 1, 2, ... n trials (Dodge et al., 2019, https://aclanthology.org/D19-1224).

    Of trials drawn with replacement from the n made. Too low for numbers near n (Tang et al., 2020), yet of smaller
    error than the unbiased estimator (Dodge et al., 2021). Higher is better: negate a loss, and the result.

    >>> [round(best, 3) for best in expected_best([0.7, 0.9, 0.8])]
    [0.8, 0.844, 0.867]
    """
    ascending = np.sort(_finite(scores, "scores", axes=1))
    n = len(ascending)
    share = np.arange(n + 1) / n
    return [float(ascending @ np.diff(share**trials)) for trials in range(1, n + 1)]


def _finite(values: ArrayLike, name: str, *, axes: int) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != axes or not array.size:
        raise ValueError(f"{name}: wanted {axes} axes and at least one value, found shape {array.shape}")
    if bad := int((~np.isfinite(array)).sum()):
        raise ValueError(
            f"{name}: {bad} of {array.size} values are NaN or infinite; count diverged runs apart, do not pass them on"
        )
    return array


def _positive(margin: float) -> float:
    if not (margin > 0 and math.isfinite(margin)):
        raise ValueError(f"the margin must be a positive difference of scores, found {margin}")
    return margin
