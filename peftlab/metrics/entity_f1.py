"""Precision, recall and F1 of entities in strict IOB2, by seqeval (Nakayama, 2018)."""

from __future__ import annotations

import collections
import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from peftlab.metrics.metric import ColumnType, Metric

Span = tuple[str, int, int]  # entity type, first word, one past the last word

MARK = "."  # seqeval strips hyphens off the end of a type; a type that ends in a mark keeps them


def entities(sentences: Sequence[Sequence[str]]) -> list[list[Span]]:
    """Entities of each sentence, in strict IOB2: each begins with B-.

    >>> entities([["I-PER", "O", "B-LOC", "I-LOC", "I-PER"]])
    [[('LOC', 2, 4)]]
    """
    return [list(_entities(tuple(tags))) for tags in sentences]


@functools.lru_cache(maxsize=2**15)  # references recur in every run of a suite, and so do most predictions
def _entities(tags: tuple[str, ...]) -> tuple[Span, ...]:
    from seqeval.scheme import IOB2, Tokens

    marked = Tokens([tag if tag == "O" else tag + MARK for tag in tags], IOB2)
    return tuple((entity.tag.removesuffix(MARK), entity.start, entity.end) for entity in marked.entities)


class EntityF1(Metric):
    """Entity F1: exact matches of entity type and both boundaries, in [0, 1]; higher is better.

    Micro average over entities, and per type; `token_accuracy` is the fraction of correct tags. If no entity is
    expected at all, only `token_accuracy` is defined. Raises ValueError if a sentence's tags differ in number.

    >>> tags = [["B-PER", "I-PER", "O", "B-LOC"]]
    >>> scores = EntityF1().compute(predictions=[["B-PER", "O", "O", "B-LOC"]], references=tags)
    >>> scores["entity_f1"], scores["entity_f1/LOC"], scores["token_accuracy"]
    (0.5, 1.0, 0.75)
    """

    kind: Literal["entity_f1"] = "entity_f1"
    citation: ClassVar[str] = (
        "Nakayama, 2018. seqeval: A Python framework for sequence labeling evaluation. github.com/chakki-works/seqeval"
    )
    columns: ClassVar[Mapping[str, ColumnType]] = {"predictions": "strings", "references": "strings"}
    scores: ClassVar[tuple[str, ...]] = (
        *("entity_f1", "entity_precision", "entity_recall"),
        *("token_accuracy", "entity_f1/*"),
    )
    aggregates: ClassVar[Mapping[str, str]] = {"entity_f1": "f1"}

    def _compute(self, *, predictions: list[list[str]], references: list[list[str]]) -> dict[str, float]:
        from seqeval.metrics import accuracy_score
        from seqeval.metrics.v1 import check_consistent_length

        accuracy = {"token_accuracy": float(accuracy_score(references, predictions))}
        if all(tag == "O" for tags in references for tag in tags):
            return accuracy
        check_consistent_length(references, predictions)
        correct, predicted, expected = (collections.Counter[str]() for _ in range(3))
        for predicted_spans, expected_spans in zip(entities(predictions), entities(references), strict=True):
            correct.update(type_ for type_, *_ in set(predicted_spans) & set(expected_spans))
            predicted.update(type_ for type_, *_ in predicted_spans)
            expected.update(type_ for type_, *_ in expected_spans)
        precision, recall, f1 = _scores(correct.total(), predicted.total(), expected.total())
        scores = {"entity_f1": f1, "entity_precision": precision, "entity_recall": recall, **accuracy}
        types = sorted(predicted.keys() | expected.keys())
        return scores | {
            f"entity_f1/{type_}": _scores(correct[type_], predicted[type_], expected[type_])[2] for type_ in types
        }

    def sufficient_statistics(
        self, *, predictions: list[list[str]], references: list[list[str]]
    ) -> dict[str, list[list[float]]]:
        """Per sentence: true positives, predicted entities, expected entities.

        >>> tags = [["B-PER", "I-PER", "O", "B-LOC"]]
        >>> EntityF1().sufficient_statistics(predictions=[["B-PER", "O", "O", "B-LOC"]], references=tags)
        {'entity_f1': [[1, 2, 2]]}
        """
        predicted, expected = ([set(spans) for spans in entities(tags)] for tags in (predictions, references))
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
