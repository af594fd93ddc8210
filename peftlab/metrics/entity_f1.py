"""Entity-level precision, recall and F1: strict IOB2, by seqeval (Nakayama, 2018)."""

from __future__ import annotations

import collections
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import datasets
import evaluate
from seqeval.metrics import accuracy_score
from seqeval.metrics.v1 import check_consistent_length
from seqeval.scheme import IOB2, Tokens

_CITATION = (
    "Nakayama, 2018. seqeval: A Python framework for sequence labeling evaluation. github.com/chakki-works/seqeval"
)

Span = tuple[str, int, int]

MARK = "."  # seqeval strips hyphens off the end of a type; a type that ends in a mark keeps them


def entities(sentences: Sequence[Sequence[str]]) -> list[list[Span]]:
    """Type, first word and one past the last word of each sentence's entities, in strict IOB2: each begins with a B-.

    >>> entities([["I-PER", "O", "B-LOC", "I-LOC", "I-PER"]])
    [[('LOC', 2, 4)]]
    """
    return [list(_entities(tuple(tags))) for tags in sentences]


@functools.lru_cache(maxsize=2**15)  # references recur in every run of a suite, and so do most predictions
def _entities(tags: tuple[str, ...]) -> tuple[Span, ...]:
    marked = Tokens([tag if tag == "O" else tag + MARK for tag in tags], IOB2)
    return tuple((entity.tag.removesuffix(MARK), entity.start, entity.end) for entity in marked.entities)


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
        check_consistent_length(references, predictions)
        correct, predicted, expected = (collections.Counter[str]() for _ in range(3))
        for ours, theirs in zip(entities(predictions), entities(references), strict=True):
            correct.update(kind for kind, *_ in set(ours) & set(theirs))
            predicted.update(kind for kind, *_ in ours)
            expected.update(kind for kind, *_ in theirs)
        precision, recall, f1 = _scores(correct.total(), predicted.total(), expected.total())
        scores = {"entity_f1": f1, "entity_precision": precision, "entity_recall": recall, **accuracy}
        types = sorted(predicted.keys() | expected.keys())
        return scores | {
            f"entity_f1/{kind}": _scores(correct[kind], predicted[kind], expected[kind])[2] for kind in types
        }

    def counts(self, *, predictions: list[list[str]], references: list[list[str]]) -> dict[str, list[list[float]]]:
        """Of each sentence the entities found rightly, predicted, expected.

        >>> tags = [["B-PER", "I-PER", "O", "B-LOC"]]
        >>> Metric(keep_in_memory=True).counts(predictions=[["B-PER", "O", "O", "B-LOC"]], references=tags)
        {'entity_f1': [[1, 2, 2]]}
        """
        predicted, expected = ([set(found) for found in entities(tags)] for tags in (predictions, references))
        rows: list[list[float]] = [[len(p & e), len(p), len(e)] for p, e in zip(predicted, expected, strict=True)]
        return {"entity_f1": rows}


def _scores(correct: int, predicted: int, expected: int) -> tuple[float, float, float]:
    """Precision, recall and F1, in seqeval's order of operations; 0 where a denominator is 0.

    >>> _scores(1, 2, 4)
    (0.5, 0.25, 0.3333333333333333)
    """
    precision = correct / predicted if predicted else 0.0
    recall = correct / expected if expected else 0.0
    return precision, recall, 2 * precision * recall / (precision + recall or 1.0)
