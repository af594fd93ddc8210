"""Exact match and F1 of extracted answers, as in SQuAD's evaluation script (Rajpurkar et al., 2016)."""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Mapping
from typing import ClassVar, Literal

from peftlab.metrics.metric import ColumnType, Metric


class Squad(Metric):
    """Exact match and word F1 of extracted answers, as in SQuAD, in [0, 1]; higher is better.

    Mean over questions of the best value over a question's answers. Case, punctuation and English articles are ignored.
    The empty text is the prediction, and an empty list the reference, for "no answer". If there are both answerable and
    unanswerable questions, each kind has its scores too.

    >>> Squad().compute(predictions=["the Broncos", ""], references=[["Denver Broncos"], []])["squad_f1"]
    0.8333333333333333
    """

    kind: Literal["squad"] = "squad"
    citation: ClassVar[str] = (
        "Rajpurkar et al., 2016. SQuAD: 100,000+ Questions for Machine Comprehension of Text. arXiv:1606.05250; "
        "Rajpurkar et al., 2018. Know What You Don't Know: Unanswerable Questions for SQuAD. arXiv:1806.03822"
    )
    columns: ClassVar[Mapping[str, ColumnType]] = {"predictions": "string", "references": "strings"}
    scores: ClassVar[tuple[str, ...]] = ("squad_f1", "squad_exact_match", "squad_f1/*", "squad_exact_match/*")
    aggregates: ClassVar[Mapping[str, str]] = {"squad_f1": "mean", "squad_exact_match": "mean"}

    def _compute(self, *, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        pairs: dict[str, list[tuple[float, float]]] = {"answerable": [], "unanswerable": []}
        for predicted, answers in zip(predictions, references, strict=True):
            answers = _real_answers(answers)
            pairs["answerable" if answers else "unanswerable"].append(_best(predicted, answers))
        scores = _means([pair for of_kind in pairs.values() for pair in of_kind])
        if all(pairs.values()):
            for kind, of_kind in pairs.items():
                scores |= {f"{name}/{kind}": value for name, value in _means(of_kind).items()}
        return scores

    def sufficient_statistics(
        self, *, predictions: list[str], references: list[list[str]]
    ) -> dict[str, list[list[float]]]:
        """F1 and exact match of each question."""
        pairs = [_best(text, _real_answers(answers)) for text, answers in zip(predictions, references, strict=True)]
        return {"squad_f1": [[f1] for _, f1 in pairs], "squad_exact_match": [[exact] for exact, _ in pairs]}


def _real_answers(answers: list[str]) -> list[str]:
    """The answers without those that consist of articles and punctuation only, as in SQuAD 2's script."""
    return [answer for answer in answers if normalize(answer)]


def _best(predicted: str, answers: list[str]) -> tuple[float, float]:
    """Best exact match and best F1 over the answers."""
    pairs = [(exact_match(predicted, answer), f1(predicted, answer)) for answer in answers or [""]]
    return max(pair[0] for pair in pairs), max(pair[1] for pair in pairs)


def normalize(text: str) -> str:
    """Lower case, without punctuation and English articles, single spaces.

    >>> normalize("The  Denver-Broncos, an NFL team.")
    'denverbroncos nfl team'
    """
    lower = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", lower).split())


def exact_match(predicted: str, answer: str) -> float:
    """1 if both are equal after `normalize`, else 0."""
    return float(normalize(predicted) == normalize(answer))


def f1(predicted: str, answer: str) -> float:
    """Harmonic mean of precision and recall over words. If one has no words: 1 if both have none, else 0.

    >>> f1("in the city of Denver", "Denver, Colorado")
    0.3333333333333333
    """
    predicted_words, answer_words = normalize(predicted).split(), normalize(answer).split()
    if not predicted_words or not answer_words:
        return float(predicted_words == answer_words)
    common = sum((collections.Counter(predicted_words) & collections.Counter(answer_words)).values())
    return 2 * common / (len(predicted_words) + len(answer_words))


def _means(pairs: list[tuple[float, float]]) -> dict[str, float]:
    exact, f1s = zip(*pairs, strict=True)
    return {"squad_f1": sum(f1s) / len(f1s), "squad_exact_match": sum(exact) / len(exact)}
