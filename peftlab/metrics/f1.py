"""F1 of classes: macro, micro and each, by scikit-learn (Pedregosa et al., 2011)."""

from __future__ import annotations

from typing import ClassVar

import datasets
import evaluate
from sklearn.metrics import f1_score

_CITATION = "Pedregosa et al., 2011. Scikit-learn: Machine Learning in Python. JMLR 12, 2825-2830"

MOST_CLASSES = 100  # of which each example's counts are kept


class Metric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """Labels in, F1 in [0, 1] out: the mean over classes (macro), over all answers (micro), and of each class.

    The classes are those that occur among predictions or references; an empty prediction is no answer.

    >>> scores = Metric(keep_in_memory=True).compute(predictions=["a", "b", ""], references=["a", "a", "b"])
    >>> {name: round(value, 3) for name, value in scores.items()}
    {'macro_f1': 0.333, 'micro_f1': 0.4, 'f1/a': 0.667, 'f1/b': 0.0}
    """

    counted: ClassVar[dict[str, str]] = {"macro_f1": "macro_f1", "micro_f1": "f1"}

    def _info(self) -> evaluate.MetricInfo:
        label = datasets.Value("string")
        return evaluate.MetricInfo(
            description=str(self.__doc__),
            citation=_CITATION,
            inputs_description="predictions, references: a label each",
            features=datasets.Features({"predictions": label, "references": label}),
        )

    def _compute(self, *, predictions: list[str], references: list[str]) -> dict[str, float]:
        labels = sorted({*predictions, *references} - {""})
        scores = {
            f"{average}_f1": float(f1_score(references, predictions, labels=labels, average=average, zero_division=0))
            for average in ("macro", "micro")
        }
        each = f1_score(references, predictions, labels=labels, average=None, zero_division=0)
        return scores | {f"f1/{label}": float(value) for label, value in zip(labels, each, strict=True)}

    def counts(self, *, predictions: list[str], references: list[str]) -> dict[str, list[list[float]]]:
        """Of each answer the labels found rightly, predicted, expected: of each class, and of all."""
        return label_counts([[p] if p else [] for p in predictions], [[r] for r in references])


def label_counts(predictions: list[list[str]], references: list[list[str]]) -> dict[str, list[list[float]]]:
    """What the F1 of sets of labels is made of; none of each class where there are more than `MOST_CLASSES`."""
    pairs = [(set(one), set(other)) for one, other in zip(predictions, references, strict=True)]
    counts = {"micro_f1": [[float(len(part)) for part in (one & other, one, other)] for one, other in pairs]}
    expected = sorted(set().union(*references))  # of all runs the same, and so the same columns
    labels = [*expected, *sorted(set().union(*predictions).difference(expected))]
    if len(labels) > MOST_CLASSES:
        return counts
    each = [[float(label in part) for label in labels for part in (one & other, one, other)] for one, other in pairs]
    return {"macro_f1": each} | counts
