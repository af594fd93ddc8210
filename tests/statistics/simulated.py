"""Simulated scores of methods, seeds and examples whose true values are known."""

import numpy as np
from numpy.typing import NDArray
from scipy import special

from peftlab.statistics.aggregates import Floats
from peftlab.statistics.bootstrap import Resampled, bootstrap

SEEDS, EXAMPLES = 5, 200


def same_on_all_examples(scores: list[float]) -> Resampled:
    """Seeds with the same score on every example: no example variance, so that textbook t tests are exact."""
    return bootstrap(np.repeat(np.array(scores)[:, None], 20, axis=1), resamples=50)


def right_answers(
    generator: np.random.Generator,
    difficulty: Floats,
    *,
    accuracy: float = 0.8,
    seed_spread: float = 0.05,
    seeds: int = SEEDS,
) -> Resampled:
    """Right answers from a probit model: seed + example + seed x example, unit variance; `accuracy` is the true one.

    difficulty (examples,), standard normal. A seed_spread of 0.05 moves an accuracy near 0.8 by 1.4 points.
    """
    seed_effect = generator.normal(0, seed_spread, (seeds, 1))
    noise = generator.normal(0, np.sqrt(1 - 0.8**2 - seed_spread**2), (seeds, len(difficulty)))
    right = special.ndtri(accuracy) + 0.8 * difficulty + seed_effect + noise > 0
    return bootstrap(right, resamples=200)


def pair(generator: np.random.Generator, gain: float, seed_spread: float, seeds: int = SEEDS) -> list[Resampled]:
    difficulty = generator.normal(size=EXAMPLES)
    accuracies = (0.8 + gain, 0.8)
    return [right_answers(generator, difficulty, accuracy=a, seed_spread=seed_spread, seeds=seeds) for a in accuracies]


def entities(generator: np.random.Generator, gold: NDArray[np.int64], seed_spread: float) -> Floats:
    """Counts (seeds, examples, 3) for `f1`: seeds differ in recall and in the number of false positives."""
    seed_effect = generator.normal(0, seed_spread, (SEEDS, 1))
    true_positives = generator.binomial(gold, special.ndtr(1.2 + seed_effect) * np.ones(gold.shape))
    predicted = true_positives + generator.poisson(0.2 * np.exp(-seed_effect) * np.ones(gold.shape))
    return np.stack([true_positives, predicted, np.broadcast_to(gold, true_positives.shape)], axis=-1).astype(float)


def true_f1(seed_spread: float) -> float:
    """Mean F1 over seeds in the limit of many examples, for `entities` with 1.7 of them per example."""
    seed_effect = special.ndtri((np.arange(10_000) + 0.5) / 10_000) * seed_spread
    true_positives = 1.7 * special.ndtr(1.2 + seed_effect)
    return float(np.mean(2 * true_positives / (true_positives + 0.2 * np.exp(-seed_effect) + 1.7)))


def two_level_percentiles(method: Resampled, generator: np.random.Generator) -> tuple[float, float]:
    """Bootstrap over seeds and examples, for comparison: its 2.5th and 97.5th percentiles."""
    draws, seeds = method.replicates.shape
    means = np.take_along_axis(method.replicates, generator.integers(seeds, size=(draws, seeds)), axis=1).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
