"""entity_f1: the scores of seqeval's classification report, without reading a sentence twice."""

import random

import pytest
from seqeval.metrics import classification_report
from seqeval.scheme import IOB2

from peftlab import metrics

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
