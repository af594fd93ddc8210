"""Metrics agree with the examples that the libraries they stand on publish, and need no network."""

from typing import Any

import pytest

from peftlab.metrics import METRICS, load_metric, score

# The example of seqeval's README.
REFERENCES = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
PREDICTIONS = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]


def test_entity_f1_is_seqevals_published_figure() -> None:
    scores = load_metric("entity_f1").compute(predictions=PREDICTIONS, references=REFERENCES)
    assert scores == {
        "entity_f1": 0.5,
        "entity_precision": 0.5,
        "entity_recall": 0.5,
        "token_accuracy": pytest.approx(0.8),
        "entity_f1/MISC": 0.0,
        "entity_f1/PER": 1.0,
    }


def test_entity_f1_is_strict() -> None:
    # conlleval would accept I-PER at the start of an entity; strict IOB2 does not.
    scores = load_metric("entity_f1").compute(predictions=[["I-PER", "I-PER"]], references=[["B-PER", "I-PER"]])
    assert scores["entity_f1"] == 0.0


def compute(name: str, predictions: list[Any], references: list[Any], **more: Any) -> dict[str, float]:
    scores: dict[str, float] = load_metric(name).compute(predictions=predictions, references=references, **more)
    return scores


def letters(numbers: list[int]) -> list[str]:
    return [str(number) for number in numbers]


def test_accuracy_and_f1_are_scikit_learns_published_figures() -> None:
    assert compute("accuracy", letters([0, 2, 1, 3]), letters([0, 1, 2, 3])) == {"accuracy": 0.5}
    scores = compute("f1", letters([0, 2, 1, 0, 0, 1]), letters([0, 1, 2, 0, 1, 2]))
    assert scores == {
        **{"macro_f1": pytest.approx(0.267, abs=5e-4), "micro_f1": pytest.approx(0.333, abs=5e-4)},
        **{"f1/0": pytest.approx(0.8), "f1/1": 0.0, "f1/2": 0.0},
    }


def test_f1_of_sets_is_scikit_learns_published_figure() -> None:
    predictions, references = [[], ["a", "b", "c"], ["a", "b"]], [[], ["a", "b", "c"], ["b", "c"]]
    scores = compute("multilabel_f1", predictions, references)
    each = [scores[f"f1/{name}"] for name in "abc"]
    assert each == [pytest.approx(0.66666667), 1.0, pytest.approx(0.66666667)]
    assert scores["macro_f1"] == pytest.approx(sum(each) / 3)
    assert scores["micro_f1"] == pytest.approx(0.8)  # four right, one too many, one missing
    assert scores["exact_match"] == pytest.approx(2 / 3)


def test_mcc_is_scikit_learns_published_figure() -> None:
    assert compute("mcc", letters([1, -1, 1, 1]), letters([1, 1, 1, -1])) == {"mcc": pytest.approx(-0.33, abs=5e-3)}


def test_regression_errors_are_scikit_learns_published_figures() -> None:
    scores = compute("regression_error", [2.5, 0.0, 2.0, 8.0], [3.0, -0.5, 2.0, 7.0])
    assert scores == {
        **{"rmse": pytest.approx(0.612, abs=5e-4), "mae": pytest.approx(0.5), "r2": pytest.approx(0.948, abs=1e-3)}
    }


def test_correlations_are_scipys_published_figures() -> None:
    scores = compute("pearson", [1.0, 2, 3, 4, 5, 6, 7], [10.0, 9, 2.5, 6, 4, 3, 2])
    assert scores == {"pearson": pytest.approx(-0.828503883588428, abs=1e-12)}
    scores = compute("spearman", [5.0, 6, 7, 8, 7], [1.0, 2, 3, 4, 5])
    assert scores == {"spearman": pytest.approx(0.8207826816681233, abs=1e-12)}


def test_calibration_error_is_that_of_scikit_learns_published_curve() -> None:
    # The curve is (0, 0.2), (0.5, 0.525), (1, 0.85) from 3, 2 and 4 answers.
    probability = [0.1, 0.2, 0.3, 0.4, 0.65, 0.7, 0.8, 0.9, 1.0]
    references = ["no"] * 4 + ["yes"] * 5
    scores = compute("calibration_error", ["yes"] * 9, references, probability=probability, bins=3)
    expected = 3 / 9 * 0.2 + 2 / 9 * 0.025 + 4 / 9 * 0.15
    assert scores == {"calibration_error": pytest.approx(expected)}


@pytest.mark.parametrize(
    ("name", "predictions", "references", "absent"),
    [
        ("mcc", ["a", "a"], ["a", "b"], "mcc"),
        ("mcc", ["a", "b"], ["a", "a"], "mcc"),
        ("pearson", [1.0, 1.0], [1.0, 2.0], "pearson"),
        ("pearson", [1.0], [1.0], "pearson"),
        ("spearman", [1.0, 2.0], [1.0, 1.0], "spearman"),
        ("regression_error", [1.0, 2.0], [1.0, 1.0], "r2"),
        ("multilabel_f1", [[]], [[]], "micro_f1"),
    ],
)
def test_what_is_undefined_is_absent(name: str, predictions: list[Any], references: list[Any], absent: str) -> None:
    assert absent not in compute(name, predictions, references)


def test_an_empty_prediction_is_a_miss_and_no_false_alarm() -> None:
    scores = compute("f1", ["a", ""], ["a", "b"])
    assert (scores["macro_f1"], scores["micro_f1"]) == (0.5, pytest.approx(2 / 3))


def test_a_metric_is_given_of_the_records_what_its_features_name() -> None:
    records = [{"predicted": "a", "expected": "b", "probability": 0.75, "text": "never mind"}]
    assert score(["accuracy", "calibration_error"], records) == {"accuracy": 0.0, "calibration_error": 0.75}


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_loads_without_a_network_and_describes_itself(name: str) -> None:
    metric = load_metric(name)
    assert metric.description
    assert metric.citation
