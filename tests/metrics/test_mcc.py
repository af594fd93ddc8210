"""The Matthews correlation coefficient equals that of scikit-learn."""

import pytest

from tests.metrics.test_metrics import compute, strings


def test_mcc_equals_the_published_example_of_scikit_learn() -> None:
    assert compute("mcc", strings([1, -1, 1, 1]), strings([1, 1, 1, -1])) == {"mcc": pytest.approx(-0.33, abs=5e-3)}
