"""Expected best validation score as a function of the number of trials (Dodge et al., 2019)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from peftlab.statistics.checks import finite_array


def expected_best(scores: ArrayLike) -> list[float]:
    """Expected best score of 1, 2, ..., n trials (Dodge et al., 2019, https://aclanthology.org/D19-1224).

    scores (n,): higher is better; negate a loss and the result. The trials are drawn with replacement from the n given.
    The estimate is biased low for numbers near n (Tang et al., 2020) but has a smaller error than the unbiased
    estimator (Dodge et al., 2021).

    >>> [round(best, 3) for best in expected_best([0.7, 0.9, 0.8])]
    [0.8, 0.844, 0.867]
    """
    ascending = np.sort(finite_array(scores, "scores", ndim=1))
    n = len(ascending)
    quantiles = np.arange(n + 1) / n
    return [float(ascending @ np.diff(quantiles**trials)) for trials in range(1, n + 1)]
