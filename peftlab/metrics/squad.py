"""Exact match and F1 of extracted answers, as SQuAD's official evaluation script has them (Rajpurkar et al., 2016)."""

from __future__ import annotations

import collections
import re
import string
from typing import Any, ClassVar

import datasets
import evaluate

_CITATION = (
    "Rajpurkar et al., 2016. SQuAD: 100,000+ Questions for Machine Comprehension of Text. arXiv:1606.05250; "
    "Rajpurkar et al., 2018. Know What You Don't Know: Unanswerable Questions for SQuAD. arXiv:1806.03822"
)


class Metric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """The best over a question's answers, then the mean over questions; scores in [0, 1]. No answer is no text.

    Case, punctuation and English articles do not count. The two kinds of questions apart if there are both.

    >>> metric = Metric(keep_in_memory=True)
    >>> metric.compute(predictions=["the Broncos", ""], references=[["Denver Broncos"], []])["squad_f1"]
    0.8333333333333333
    """

    counted: ClassVar[dict[str, str]] = {"squad_f1": "mean", "squad_exact_match": "mean"}

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=str(self.__doc__),
            citation=_CITATION,
            inputs_description="predictions: a text for each question; references: its answers, none if it has none",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.List(datasets.Value("string"))}
            ),
        )

    def _compute(self, *, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        kinds: dict[str, list[tuple[float, float]]] = {"answerable": [], "unanswerable": []}
        for predicted, answers in zip(predictions, references, strict=True):
            known = _known(answers)
            kinds["answerable" if known else "unanswerable"].append(_best(predicted, known))
        scores = _means([pair for pairs in kinds.values() for pair in pairs])
        if all(kinds.values()):
            for kind, pairs in kinds.items():
                scores |= {f"{name}/{kind}": value for name, value in _means(pairs).items()}
        return scores

    def counts(self, *, predictions: list[str], references: list[list[str]]) -> dict[str, list[list[float]]]:
        """Of each question both."""
        pairs = [_best(text, _known(answers)) for text, answers in zip(predictions, references, strict=True)]
        return {"squad_f1": [[f1] for _, f1 in pairs], "squad_exact_match": [[exact] for exact, _ in pairs]}


def _known(answers: list[str]) -> list[str]:
    """As in SQuAD 2's script: an answer that is nothing but articles and marks is no answer."""
    return [answer for answer in answers if normalized(answer)]


def _best(predicted: str, known: list[str]) -> tuple[float, float]:
    """Exact match and F1, each by the answer that is nearest in it."""
    pairs = [(exact_match(predicted, answer), f1(predicted, answer)) for answer in known or [""]]
    return max(pair[0] for pair in pairs), max(pair[1] for pair in pairs)


def normalized(text: str) -> str:
    """Lower case, without punctuation and English articles, single spaces.

    >>> normalized("The  Denver-Broncos, an NFL team.")
    'denverbroncos nfl team'
    """
    lower = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", lower).split())


def exact_match(predicted: str, answer: str) -> float:
    return float(normalized(predicted) == normalized(answer))


def f1(predicted: str, answer: str) -> float:
    """Harmonic mean of precision and recall over words; where one has none, whether both have none.

    >>> f1("in the city of Denver", "Denver, Colorado")
    0.3333333333333333
    """
    ours, theirs = normalized(predicted).split(), normalized(answer).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def _means(pairs: list[tuple[float, float]]) -> dict[str, float]:
    exact, f1s = zip(*pairs, strict=True)
    return {"squad_f1": sum(f1s) / len(f1s), "squad_exact_match": sum(exact) / len(exact)}
