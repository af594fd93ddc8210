"""Metrics agree with the examples that the libraries they stand on publish, and need no network."""

import pytest

from peftlab.metrics import METRICS, load_metric

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


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_loads_without_a_network_and_describes_itself(name: str) -> None:
    metric = load_metric(name)
    assert metric.description
    assert metric.citation
