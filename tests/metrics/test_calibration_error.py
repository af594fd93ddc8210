"""The expected calibration error follows from the calibration curve of scikit-learn."""

import pytest

from peftlab.metrics.calibration_error import CalibrationError


def test_calibration_error_follows_from_the_published_curve_of_scikit_learn() -> None:
    # The curve is (0, 0.2), (0.5, 0.525), (1, 0.85) from 3, 2 and 4 answers.
    probability = [0.1, 0.2, 0.3, 0.4, 0.65, 0.7, 0.8, 0.9, 1.0]
    references = ["no"] * 4 + ["yes"] * 5
    metric = CalibrationError(bins=3)
    scores = metric.compute(predictions=["yes"] * 9, references=references, probability=probability)
    expected = 3 / 9 * 0.2 + 2 / 9 * 0.025 + 4 / 9 * 0.15
    assert scores == {"calibration_error": pytest.approx(expected)}
