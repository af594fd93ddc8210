"""Entity-level precision, recall and F1: strict IOB2, by seqeval (Nakayama, 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import datasets
import evaluate
from seqeval.metrics import accuracy_score, classification_report
from seqeval.scheme import IOB2, Entities

_CITATION = (
    "Nakayama, 2018. seqeval: A Python framework for sequence labeling evaluation. github.com/chakki-works/seqeval"
)

MARK = "."


def entities(sentences: Sequence[Sequence[str]]) -> list[list[tuple[str, int, int]]]:
    """Of each sentence's tags type, first word and one past the last of all that counts: in strict IOB2, from a B-.

    >>> entities([["I-PER", "O", "B-LOC", "I-LOC", "I-PER"]])
    [[('LOC', 2, 4)]]
    """
    found = Entities([list(tags) for tags in sentences], IOB2).entities
    return [[(entity.tag, entity.start, entity.end) for entity in of_one] for of_one in found]


class Metric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """An entity counts if type and both boundaries agree. Tag sequences in; scores in [0, 1] out, per type too.

    Where no entity is expected at all there is nothing to find, and of the scores only token_accuracy.

    >>> tags = [["B-PER", "I-PER", "O", "B-LOC"]]
    >>> scores = Metric(keep_in_memory=True).compute(predictions=[["B-PER", "O", "O", "B-LOC"]], references=tags)
    >>> scores["entity_f1"], scores["entity_f1/LOC"], scores["token_accuracy"]
    (0.5, 1.0, 0.75)
    """

    counted: ClassVar[dict[str, str]] = {"entity_f1": "f1"}

    def _info(self) -> evaluate.MetricInfo:
        tags = datasets.List(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=str(self.__doc__),
            citation=_CITATION,
            inputs_description="predictions, references: a list of IOB2 tags for each sentence",
            features=datasets.Features({"predictions": tags, "references": tags}),
        )

    def _compute(self, *, predictions: list[list[str]], references: list[list[str]]) -> dict[str, Any]:
        accuracy = {"token_accuracy": float(accuracy_score(references, predictions))}
        if all(tag == "O" for tags in references for tag in tags):
            return accuracy
        # A type that is called like one of the report's averages ("micro avg") would be lost: none ends in a mark.
        marked = [
            [[tag if tag == "O" else tag + MARK for tag in tags] for tags in x] for x in (references, predictions)
        ]
        report = classification_report(*marked, output_dict=True, mode="strict", scheme=IOB2, zero_division=0)
        overall = report["micro avg"]
        scores = {
            "entity_f1": float(overall["f1-score"]),
            "entity_precision": float(overall["precision"]),
            "entity_recall": float(overall["recall"]),
            **accuracy,
        }
        types = [name for name in report if name.endswith(MARK)]
        return scores | {f"entity_f1/{name.removesuffix(MARK)}": float(report[name]["f1-score"]) for name in types}

    def counts(self, *, predictions: list[list[str]], references: list[list[str]]) -> dict[str, list[list[float]]]:
        """Of each sentence the entities found rightly, predicted, expected.

        >>> tags = [["B-PER", "I-PER", "O", "B-LOC"]]
        >>> Metric(keep_in_memory=True).counts(predictions=[["B-PER", "O", "O", "B-LOC"]], references=tags)
        {'entity_f1': [[1, 2, 2]]}
        """
        predicted, expected = ([set(found) for found in entities(tags)] for tags in (predictions, references))
        rows: list[list[float]] = [[len(p & e), len(p), len(e)] for p, e in zip(predicted, expected, strict=True)]
        return {"entity_f1": rows}
