"""Accuracy and F1 of classes equal those of scikit-learn."""

import pytest

from tests.metrics.test_metrics import compute, strings


def test_accuracy_and_f1_equal_the_published_examples_of_scikit_learn() -> None:
    assert compute("accuracy", strings([0, 2, 1, 3]), strings([0, 1, 2, 3])) == {"accuracy": 0.5}
    scores = compute("f1", strings([0, 2, 1, 0, 0, 1]), strings([0, 1, 2, 0, 1, 2]))
    assert scores == {
        **{"macro_f1": pytest.approx(0.267, abs=5e-4), "micro_f1": pytest.approx(0.333, abs=5e-4)},
        **{"f1/0": pytest.approx(0.8), "f1/1": 0.0, "f1/2": 0.0},
    }


def test_an_empty_prediction_is_a_false_negative_but_no_false_positive() -> None:
    scores = compute("f1", ["a", ""], ["a", "b"])
    assert (scores["macro_f1"], scores["micro_f1"]) == (0.5, pytest.approx(2 / 3))
