"""Errors of a regression equal those of scikit-learn."""

import pytest

from tests.metrics.test_metrics import compute


def test_regression_errors_equal_the_published_examples_of_scikit_learn() -> None:
    scores = compute("regression_error", [2.5, 0.0, 2.0, 8.0], [3.0, -0.5, 2.0, 7.0])
    assert scores == {
        **{"rmse": pytest.approx(0.612, abs=5e-4), "mae": pytest.approx(0.5), "r2": pytest.approx(0.948, abs=1e-3)}
    }
