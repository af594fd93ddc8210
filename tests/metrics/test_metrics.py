"""Metrics reproduce the published examples of the libraries that compute them, and need no network."""

import fnmatch
from typing import Any, Literal

import pytest

from peftlab.metrics import METRICS, load_metric, prediction_keys, score, signatures
from peftlab.metrics.metric import ColumnType, Metric


def compute(name: str, predictions: list[Any], references: list[Any]) -> dict[str, float]:
    return load_metric(name).compute(predictions=predictions, references=references)


def strings(numbers: list[int]) -> list[str]:
    return [str(number) for number in numbers]


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
def test_an_undefined_score_is_absent(name: str, predictions: list[Any], references: list[Any], absent: str) -> None:
    assert absent not in compute(name, predictions, references)


def test_a_metric_reads_the_keys_of_a_record_that_its_columns_name() -> None:
    records = [{"predicted": "a", "expected": "b", "probability": 0.75, "text": "not read"}]
    assert score(["accuracy", "calibration_error"], records) == {"accuracy": 0.0, "calibration_error": 0.75}


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_loads_without_a_network_and_describes_itself(name: str) -> None:
    first_line = (METRICS[name].__doc__ or "").splitlines()[0]
    assert "higher is better" in first_line or "lower is better" in first_line
    assert load_metric(name).citation


EXAMPLES: dict[ColumnType, list[Any]] = {
    "string": ["a", "b", "b"],
    "strings": [["a"], ["b"], ["a"]],
    "float": [0.25, 0.5, 1.0],
    "integer": [1, 2, 3],
}


@pytest.mark.parametrize("name", METRICS)
def test_names_of_scores_are_known_without_computing_them(name: str) -> None:
    metric = load_metric(name)
    columns = {column: EXAMPLES[type_] for column, type_ in metric.columns.items()}
    if name == "entity_f1":
        columns = {column: [["B-A", "O"], ["B-A", "I-A"]] for column in columns}
    scores = metric.compute(**columns)
    assert all(any(fnmatch.fnmatchcase(score, pattern) for pattern in metric.scores) for score in scores)
    assert all("*" in pattern or pattern in scores for pattern in metric.scores)
    assert metric.aggregates.keys() <= set(metric.scores)
    assert metric.sufficient_statistics(**columns).keys() <= metric.aggregates.keys()


def test_prediction_keys_are_those_that_the_model_predicted() -> None:
    keys = prediction_keys(["accuracy", "calibration_error", "perplexity"])
    assert keys == ["nats", "predicted", "probability", "tokens"]


def test_a_metric_that_lacks_an_obligatory_part_is_refused_and_the_part_is_named() -> None:
    with pytest.raises(TypeError, match="Nameless lacks the class attribute citation, scores"):

        class Nameless(Metric):
            kind: Literal["nameless"] = "nameless"
            columns = {"predictions": "string"}  # noqa: RUF012

    class Abstract(Metric):
        pass

    with pytest.raises(TypeError, match=r"Can't instantiate abstract class Abstract.*_compute"):
        Abstract(kind="abstract")


def test_signatures_come_from_the_libraries() -> None:
    found = signatures(METRICS)
    assert found["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert found["chrf"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")
    assert "entity_f1" not in found
