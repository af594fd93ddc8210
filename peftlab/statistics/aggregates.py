"""Scores of a whole test set as functions of sums over its examples, so that other draws of it can be scored too.

Each takes summed counts (..., k) and gives scores (...). What is undefined for a draw is 0: it is as good as knowing
nothing, and a draw without any answer of a class is rare enough not to matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Aggregate = Callable[[Floats], Floats]


def f1(sums: Floats) -> Floats:
    """F1 of summed counts (..., 3): true positives, predicted, gold. 0 where nothing is predicted and nothing is gold.

    >>> f1(np.array([[3.0, 4.0, 6.0], [0.0, 0.0, 0.0]])).tolist()
    [0.6, 0.0]
    """
    scores: Floats = 2 * sums[..., 0] / np.maximum(sums[..., 1] + sums[..., 2], 1)
    return scores


def macro_f1(sums: Floats) -> Floats:
    """The mean F1 of the classes that a draw has; summed counts (..., 3 c): as of `f1`, of one class after the other.

    >>> macro_f1(np.array([3.0, 4.0, 6.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0])).item()
    0.8
    """
    classes = sums.reshape(*sums.shape[:-1], -1, 3)
    there = classes[..., 1] + classes[..., 2] > 0
    scores: Floats = _over(f1(classes).sum(axis=-1), there.sum(axis=-1).astype(np.float64))
    return scores


def ratio(sums: Floats) -> Floats:
    """Of summed counts (..., 2): right, answered, as the accuracy over the words of sentences.

    >>> ratio(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [0.75, 0.0]
    """
    scores: Floats = sums[..., 0] / np.maximum(sums[..., 1], 1)
    return scores


def perplexity(sums: Floats) -> Floats:
    """Of summed counts (..., 2): nats, target tokens.

    >>> perplexity(np.array([np.log(4.0) * 3, 3.0])).round(9).item()
    4.0
    """
    scores: Floats = np.exp(ratio(sums))
    return scores


def mcc(sums: Floats) -> Floats:
    """Matthews' coefficient of two classes; summed counts (..., 4): true positives, false positives, false negatives,
    true negatives (Matthews, 1975).

    >>> mcc(np.array([[6.0, 1.0, 2.0, 3.0], [5.0, 5.0, 0.0, 0.0]])).round(4).tolist()
    [0.4781, 0.0]
    """
    tp, fp, fn, tn = np.moveaxis(sums, -1, 0)
    scores: Floats = _over(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    return scores


def pearson(sums: Floats) -> Floats:
    """Of summed counts (..., 6): 1, x, y, x^2, y^2, x y.

    >>> pearson(np.array([3.0, 6.0, 9.0, 14.0, 29.0, 20.0])).round(9).item()
    1.0
    """
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread = np.maximum(n * xx - x * x, 0) * np.maximum(n * yy - y * y, 0)
    return _over(n * xy - x * y, np.sqrt(spread))


def r2(sums: Floats) -> Floats:
    """1 - squared errors / squares about the mean; summed counts (..., 4): 1, y, y^2, squared error.

    >>> r2(np.array([2.0, 4.0, 10.0, 1.0])).item()
    0.5
    """
    n, y, yy, error = np.moveaxis(sums, -1, 0)
    about_mean = yy - y * y / np.maximum(n, 1)
    scores: Floats = np.where(about_mean > 0, 1 - _over(error, about_mean), 0.0)
    return scores


def bleu(sums: Floats) -> Floats:
    """From 0 to 100; summed counts (..., 10): length, reference length, n-grams found of 1 to 4, n-grams written
    (Papineni et al., 2002), an order without any found counted as half of one, the next as a quarter (NIST's, which
    sacrebleu calls exp).

    >>> bleu(np.array([6.0, 6, 5, 3, 2, 1, 6, 5, 4, 3])).round(4).item()
    53.7285
    """
    length, wanted, found, written = sums[..., 0], sums[..., 1], sums[..., 2:6], sums[..., 6:10]
    none = found == 0
    precisions = np.where(none, 0.5 ** np.cumsum(none, axis=-1), found) / np.maximum(written, 1)
    brevity = np.exp(np.minimum(0, 1 - wanted / np.maximum(length, 1)))
    scores: Floats = 100 * brevity * np.exp(np.log(precisions).mean(axis=-1))
    return np.where((written == 0).any(axis=-1) | none.all(axis=-1), 0.0, scores)


def chrf(sums: Floats) -> Floats:
    """From 0 to 100; summed counts (..., 3 n): character n-grams written, wanted, found; of 1 first (Popović, 2015).

    The F score, recall weighed twice, of the mean precision and recall of those orders that both texts have.

    >>> chrf(np.array([6.0, 6, 6, 5, 5, 4, 4, 4, 3, 3, 3, 2, 2, 2, 1, 1, 1, 0])).round(4).item()
    61.9444
    """
    written, wanted, found = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
    there = (written > 0) & (wanted > 0)
    orders = there.sum(axis=-1).astype(np.float64)
    precision, recall = (_over(np.where(there, _over(found, of), 0.0).sum(axis=-1), orders) for of in (written, wanted))
    return 100 * _over(5 * precision * recall, 4 * precision + recall)


def stacked(tables: Sequence[Sequence[Sequence[float]]]) -> Floats:
    """Counts of several models on the same examples, (models, examples, k): 0 where one has no such column.

    >>> stacked([[[1.0, 2.0]], [[3.0]]]).tolist()
    [[[1.0, 2.0]], [[3.0, 0.0]]]
    """
    arrays = [np.array(table, dtype=np.float64) for table in tables]
    return np.stack([widened(array, max(other.shape[-1] for other in arrays)) for array in arrays])


def widened(counts: Floats, columns: int) -> Floats:
    """Counts (..., k) with columns of nothing added: of a class that others alone have predicted."""
    return np.pad(counts, [(0, 0)] * (counts.ndim - 1) + [(0, columns - counts.shape[-1])])


def _over(above: Floats, below: Floats) -> Floats:
    """The quotient, 0 where it has no value."""
    quotient: Floats = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return quotient


# Between which values a score of each form lies.
RANGES = {
    "mean": (0.0, 1.0), "f1": (0.0, 1.0), "macro_f1": (0.0, 1.0), "ratio": (0.0, 1.0), "perplexity": (1.0, np.inf),
    "mcc": (-1.0, 1.0), "pearson": (-1.0, 1.0), "r2": (-np.inf, 1.0), "bleu": (0.0, 100.0),
    "chrf": (0.0, 100.0),
}  # fmt: skip

# By name, as stored counts say it; None for a mean over examples.
AGGREGATES: dict[str, Aggregate | None] = {
    "mean": None, "f1": f1, "macro_f1": macro_f1, "ratio": ratio, "perplexity": perplexity, "mcc": mcc,
    "pearson": pearson, "r2": r2, "bleu": bleu, "chrf": chrf,
}  # fmt: skip
