"""Pearson and Spearman correlations equal those of SciPy."""

import pytest

from tests.metrics.test_metrics import compute


def test_correlations_equal_the_published_examples_of_scipy() -> None:
    scores = compute("pearson", [1.0, 2, 3, 4, 5, 6, 7], [10.0, 9, 2.5, 6, 4, 3, 2])
    assert scores == {"pearson": pytest.approx(-0.828503883588428, abs=1e-12)}
    scores = compute("spearman", [5.0, 6, 7, 8, 7], [1.0, 2, 3, 4, 5])
    assert scores == {"spearman": pytest.approx(0.8207826816681233, abs=1e-12)}
