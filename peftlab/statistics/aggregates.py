"""Metrics of a test set as functions of sufficient statistics summed over its examples.

A resampled test set is scored from its sums alone. Each function maps sums (..., k) to scores (...). A score that is
undefined for a resample is 0; resamples without any prediction of a class are rare.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Aggregate = Callable[[Floats], Floats]


def f1(sums: Floats) -> Floats:
    """F1. sums (..., 3): true positives, predictions, references. 0 if there are neither predictions nor references.

    >>> f1(np.array([[3.0, 4.0, 6.0], [0.0, 0.0, 0.0]])).tolist()
    [0.6, 0.0]
    """
    scores: Floats = 2 * sums[..., 0] / np.maximum(sums[..., 1] + sums[..., 2], 1)
    return scores


def macro_f1(sums: Floats) -> Floats:
    """Mean F1 over the classes that are predicted or present. sums (..., 3 c): those of `f1` for each class in turn.

    >>> macro_f1(np.array([3.0, 4.0, 6.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0])).item()
    0.8
    """
    classes = sums.reshape(*sums.shape[:-1], -1, 3)
    present = classes[..., 1] + classes[..., 2] > 0
    scores: Floats = _over(f1(classes).sum(axis=-1), present.sum(axis=-1).astype(np.float64))
    return scores


def ratio(sums: Floats) -> Floats:
    """Ratio of sums, such as the accuracy over all words. sums (..., 2): correct, total.

    >>> ratio(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [0.75, 0.0]
    """
    scores: Floats = sums[..., 0] / np.maximum(sums[..., 1], 1)
    return scores


def perplexity(sums: Floats) -> Floats:
    """Perplexity. sums (..., 2): cross-entropy in nats, target tokens.

    >>> perplexity(np.array([np.log(4.0) * 3, 3.0])).round(9).item()
    4.0
    """
    scores: Floats = np.exp(ratio(sums))
    return scores


def mcc(sums: Floats) -> Floats:
    """Matthews correlation coefficient of two classes (Matthews, 1975).

    sums (..., 4): true positives, false positives, false negatives, true negatives.

    >>> mcc(np.array([[6.0, 1.0, 2.0, 3.0], [5.0, 5.0, 0.0, 0.0]])).round(4).tolist()
    [0.4781, 0.0]
    """
    tp, fp, fn, tn = np.moveaxis(sums, -1, 0)
    scores: Floats = _over(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    return scores


def pearson(sums: Floats) -> Floats:
    """Pearson correlation of predictions x and references y. sums (..., 6): 1, x, y, x^2, y^2, x y.

    >>> pearson(np.array([3.0, 6.0, 9.0, 14.0, 29.0, 20.0])).round(9).item()
    1.0
    """
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread = np.maximum(n * xx - x * x, 0) * np.maximum(n * yy - y * y, 0)
    return _over(n * xy - x * y, np.sqrt(spread))


def r2(sums: Floats) -> Floats:
    """Coefficient of determination, 1 - SS_residual / SS_total. sums (..., 4): 1, y, y^2, squared error.

    >>> r2(np.array([2.0, 4.0, 10.0, 1.0])).item()
    0.5
    """
    n, y, yy, error = np.moveaxis(sums, -1, 0)
    about_mean = yy - y * y / np.maximum(n, 1)
    scores: Floats = np.where(about_mean > 0, 1 - _over(error, about_mean), 0.0)
    return scores


def bleu(sums: Floats) -> Floats:
    """BLEU from 0 to 100 (Papineni et al., 2002), with exponential smoothing (NIST; `exp` in sacrebleu).

    sums (..., 10): length, reference length, matching n-grams of orders 1 to 4, predicted n-grams of orders 1 to 4.
    The first order without a match counts as 1/2 of a match, the second as 1/4.

    >>> bleu(np.array([6.0, 6, 5, 3, 2, 1, 6, 5, 4, 3])).round(4).item()
    53.7285
    """
    length, reference_length, matching, predicted = sums[..., 0], sums[..., 1], sums[..., 2:6], sums[..., 6:10]
    unmatched = matching == 0
    precisions = np.where(unmatched, 0.5 ** np.cumsum(unmatched, axis=-1), matching) / np.maximum(predicted, 1)
    brevity = np.exp(np.minimum(0, 1 - reference_length / np.maximum(length, 1)))
    scores: Floats = 100 * brevity * np.exp(np.log(precisions).mean(axis=-1))
    return np.where((predicted == 0).any(axis=-1) | unmatched.all(axis=-1), 0.0, scores)


def chrf(sums: Floats) -> Floats:
    """chrF2 from 0 to 100 (Popović, 2015): F score, with recall weighted twice, of mean precision and mean recall.

    sums (..., 3 n): predicted, reference and matching character n-grams of each order in turn, from order 1. The means
    are over the orders that both texts have.

    >>> chrf(np.array([6.0, 6, 6, 5, 5, 4, 4, 4, 3, 3, 3, 2, 2, 2, 1, 1, 1, 0])).round(4).item()
    61.9444
    """
    predicted, references, matching = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
    present = (predicted > 0) & (references > 0)
    orders = present.sum(axis=-1).astype(np.float64)
    precision, recall = (
        _over(np.where(present, _over(matching, total), 0.0).sum(axis=-1), orders) for total in (predicted, references)
    )
    return 100 * _over(5 * precision * recall, 4 * precision + recall)


def stacked(tables: Sequence[Sequence[Sequence[float]]]) -> Floats:
    """Statistics (models, examples, k) of several models on the same examples, padded with columns of zeros.

    >>> stacked([[[1.0, 2.0]], [[3.0]]]).tolist()
    [[[1.0, 2.0]], [[3.0, 0.0]]]
    """
    arrays = [np.array(table, dtype=np.float64) for table in tables]
    return np.stack([widened(array, max(other.shape[-1] for other in arrays)) for array in arrays])


def widened(counts: Floats, columns: int) -> Floats:
    """Statistics (..., k) padded with zeros to (..., columns), for classes that only other models predict."""
    return np.pad(counts, [(0, 0)] * (counts.ndim - 1) + [(0, columns - counts.shape[-1])])


def _over(numerator: Floats, denominator: Floats) -> Floats:
    """Quotient, 0 if the denominator is not positive."""
    quotient: Floats = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
    return quotient


RANGES = {
    "mean": (0.0, 1.0), "f1": (0.0, 1.0), "macro_f1": (0.0, 1.0), "ratio": (0.0, 1.0), "perplexity": (1.0, np.inf),
    "mcc": (-1.0, 1.0), "pearson": (-1.0, 1.0), "r2": (-np.inf, 1.0), "bleu": (0.0, 100.0),
    "chrf": (0.0, 100.0),
}  # fmt: skip
"""Lowest and highest possible score, by aggregate."""

AGGREGATES: dict[str, Aggregate | None] = {
    "mean": None, "f1": f1, "macro_f1": macro_f1, "ratio": ratio, "perplexity": perplexity, "mcc": mcc,
    "pearson": pearson, "r2": r2, "bleu": bleu, "chrf": chrf,
}  # fmt: skip
"""Functions by the names that stored predictions use; None for a mean over examples."""
