"""Mean scores and their confidence intervals over two sources of variance: training seeds and test examples.

The design is that of reader studies in radiology, few readers and many cases; the variance of the mean follows
Obuchowski & Rockette (1995) and Hillis (2007, https://doi.org/10.1002/sim.2532). `bootstrap` gives the variance of the
examples, the scores of the seeds give theirs.

A diverged run has no score. The caller counts it; every function of this package refuses NaN instead of dropping it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # type: ignore[import-untyped, unused-ignore]  # scipy.stats loads at first use: it takes most of a second
from numpy.typing import ArrayLike

from peftlab.statistics.aggregates import Floats
from peftlab.statistics.bootstrap import Resampled
from peftlab.statistics.checks import finite_array


@dataclass(frozen=True)
class Summary:
    """Scores of the finished seeds. `std` is the sample standard deviation (n - 1), None for one seed."""

    n: int
    mean: float
    std: float | None


def summarize(scores: ArrayLike) -> Summary:
    """Mean and sample standard deviation over seeds.

    >>> summarize([1, 2, 3])
    Summary(n=3, mean=2.0, std=1.0)
    >>> summarize([0.9])
    Summary(n=1, mean=0.9, std=None)
    """
    values = finite_array(scores, "scores", ndim=1)
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Summary(n=len(values), mean=float(np.mean(values)), std=std)


@dataclass(frozen=True)
class Estimate:
    """A score or a difference of scores, with the variance due to seeds and the variance due to test examples.

    The half-width r of the interval is r^2 = t^2 * seed_variance + u^2 * example_variance, where t and u are Student's
    quantiles, each with its own degrees of freedom (Howe, 1974, JASA 69:789). The usual single t with merged degrees of
    freedom (Satterthwaite) is shorter and covers less: simulated coverage at 95 % is 0.91-0.95 with 3 seeds.
    """

    value: float
    seed_variance: float | None
    """None with one seed: the interval then holds for that trained model, not for the method."""
    seed_degrees: float | None
    example_variance: float
    example_degrees: float

    @property
    def standard_error(self) -> float:
        return math.sqrt((self.seed_variance or 0.0) + self.example_variance)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided confidence interval. It can exceed the range of the metric; clipping does not change its coverage.

        Simulated coverage at 95 %, accuracy and F1 on 300 examples, standard deviation between seeds from 0 to 6
        points: 0.94-0.98 with 3 seeds, 0.93-0.97 with 5, lowest if the seeds are skewed. Percentiles of a bootstrap
        over both factors: 0.79-0.99.

        >>> estimate = Estimate(0.8, seed_variance=1e-4, seed_degrees=4, example_variance=0.0, example_degrees=99)
        >>> [round(bound, 4) for bound in estimate.interval()]
        [0.7722, 0.8278]
        """
        half_width = self.half_width((1 - level) / 2)
        return self.value - half_width, self.value + half_width

    def p_above(self, bound: float) -> float:
        """One-sided p-value against "the true value is at most `bound`"."""
        return self._tail(self.value - bound)

    def p_below(self, bound: float) -> float:
        """One-sided p-value against "the true value is at least `bound`"."""
        return self._tail(bound - self.value)

    def half_width(self, tail: float) -> float:
        """Distance from `value` to the bound that leaves probability `tail` on one side."""
        by_examples = scipy.special.stdtrit(self.example_degrees, tail) * math.sqrt(self.example_variance)
        if self.seed_variance is None or self.seed_degrees is None:
            return abs(float(by_examples))
        by_seeds = scipy.special.stdtrit(self.seed_degrees, tail) * math.sqrt(self.seed_variance)
        return math.hypot(by_examples, by_seeds)

    def _tail(self, distance: float) -> float:
        """Tail probability whose half-width is `distance`. 0 below 1e-100, where the quantiles lose precision."""
        if distance <= 0:
            return 1 - self._tail(-distance) if distance else 0.5
        lowest, highest = math.log(1e-100), math.log(0.5)
        if self.half_width(math.exp(lowest)) <= distance:
            return 0.0
        root = scipy.optimize.brentq(lambda log_tail: self.half_width(math.exp(log_tail)) - distance, lowest, highest)
        return math.exp(root)


def mean_score(method: Resampled) -> Estimate:
    """Mean score of a method over its seeds."""
    return two_level_estimate(
        float(method.scores.mean()),
        [method.scores],
        covariance=seed_covariance(method.replicates),
        examples=method.counts.shape[1],
    )


def seed_covariance(replicates: Floats) -> float:
    """Mean covariance between the scores of two seeds over resampled test sets; the variance if there is one seed.

    replicates (resamples, seeds).
    """
    seeds = replicates.shape[1]
    covariance = np.atleast_2d(np.cov(replicates, rowvar=False))
    if seeds == 1:
        return float(covariance[0, 0])
    return float((covariance.sum() - covariance.trace()) / (seeds * (seeds - 1)))


def two_level_estimate(value: float, groups: Sequence[Floats], *, covariance: float, examples: int) -> Estimate:
    """Estimate with the variance of the seeds of one or two groups of scores, and that of the examples.

    groups: scores (seeds,) of each method. Their sample variance (Welch's for two groups) includes the interaction of
    seed and example; `covariance` is what the seeds share, the remaining variance of the examples.
    """
    example_variance = max(covariance, 0.0) * examples / (examples - 1)
    if len(groups[0]) == 1:
        return Estimate(value, None, None, example_variance, examples - 1)
    parts = [(float(np.var(scores, ddof=1)) / len(scores), len(scores) - 1) for scores in groups]
    variance = sum(part for part, _ in parts)
    weighted = sum(part**2 / degrees for part, degrees in parts)
    degrees = variance**2 / weighted if weighted else parts[0][1]
    return Estimate(value, variance, degrees, example_variance, examples - 1)
