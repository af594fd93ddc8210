"""entity_f1: the scores of seqeval's classification report, without reading a sentence twice."""

import random

import pytest
from seqeval.metrics import classification_report
from seqeval.scheme import IOB2

from peftlab import metrics
from peftlab.metrics import load_metric

TAGS = ["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-MISC"]


@pytest.mark.parametrize("seed", range(20))
def test_the_scores_are_those_of_seqevals_report_to_the_bit(seed: int) -> None:
    random_tags = random.Random(seed)
    lengths = [random_tags.randint(1, 8) for _ in range(60)]
    predicted, expected = ([random_tags.choices(TAGS, k=length) for length in lengths] for _ in range(2))
    report = classification_report(expected, predicted, output_dict=True, mode="strict", scheme=IOB2, zero_division=0)
    scores = metrics.load_metric("entity_f1").compute(predictions=predicted, references=expected)
    overall = report["micro avg"]
    names = {"entity_f1": "f1-score", "entity_precision": "precision", "entity_recall": "recall"}
    assert {name: scores[name] for name in names} == {name: overall[key] for name, key in names.items()}
    types = {name.removeprefix("entity_f1/"): value for name, value in scores.items() if "/" in name}
    assert types == {name: values["f1-score"] for name, values in report.items() if not name.endswith("avg")}


def test_sentences_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        metrics.load_metric("entity_f1").compute(predictions=[["O"]], references=[["O", "B-PER"]])


# From seqeval's README.
REFERENCES = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]


PREDICTIONS = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]


def test_entity_f1_equals_the_published_example_of_seqeval() -> None:
    scores = load_metric("entity_f1").compute(predictions=PREDICTIONS, references=REFERENCES)
    assert scores == {
        "entity_f1": 0.5,
        "entity_precision": 0.5,
        "entity_recall": 0.5,
        "token_accuracy": pytest.approx(0.8),
        "entity_f1/MISC": 0.0,
        "entity_f1/PER": 1.0,
    }


def test_an_entity_type_may_be_named_like_an_average_of_the_report() -> None:
    tags = [["B-micro avg", "O", "B-x avg"], ["B-LOC", "I-LOC", "O"]]
    found = [["B-micro avg", "O", "O"], ["B-LOC", "I-LOC", "O"]]
    scores = load_metric("entity_f1").compute(predictions=found, references=tags)
    assert {name: value for name, value in scores.items() if name.startswith("entity_f1")} == {
        "entity_f1": pytest.approx(0.8),
        "entity_f1/LOC": 1.0,
        "entity_f1/micro avg": 1.0,
        "entity_f1/x avg": 0.0,
    }


def test_without_expected_entities_only_token_accuracy_is_defined() -> None:
    assert load_metric("entity_f1").compute(predictions=[["B-LOC", "O"]], references=[["O", "O"]]) == {
        "token_accuracy": 0.5
    }


def test_entity_f1_requires_an_entity_to_begin_with_b() -> None:
    # conlleval accepts I-PER at the start of an entity; strict IOB2 does not.
    scores = load_metric("entity_f1").compute(predictions=[["I-PER", "I-PER"]], references=[["B-PER", "I-PER"]])
    assert scores["entity_f1"] == 0.0
