"""F1 of classes, by scikit-learn (Pedregosa et al., 2011)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from peftlab.metrics.metric import ColumnType, Metric

MAX_CLASSES = 100  # above it, no statistics per class are stored


class F1(Metric):
    """F1 of classes: macro average, micro average and per class, in [0, 1]; higher is better.

    The classes are those that occur in predictions or references; an empty prediction is a missing one.

    >>> scores = F1().compute(predictions=["a", "b", ""], references=["a", "a", "b"])
    >>> {name: round(value, 3) for name, value in scores.items()}
    {'macro_f1': 0.333, 'micro_f1': 0.4, 'f1/a': 0.667, 'f1/b': 0.0}
    """

    kind: Literal["f1"] = "f1"
    citation: ClassVar[str] = "Pedregosa et al., 2011. Scikit-learn: Machine Learning in Python. JMLR 12, 2825-2830"
    columns: ClassVar[Mapping[str, ColumnType]] = {"predictions": "string", "references": "string"}
    scores: ClassVar[tuple[str, ...]] = ("macro_f1", "micro_f1", "f1/*")
    aggregates: ClassVar[Mapping[str, str]] = {"macro_f1": "macro_f1", "micro_f1": "f1"}

    def _compute(self, *, predictions: list[str], references: list[str]) -> dict[str, float]:
        from sklearn.metrics import f1_score

        labels = sorted({*predictions, *references} - {""})
        scores = {
            f"{average}_f1": float(f1_score(references, predictions, labels=labels, average=average, zero_division=0))
            for average in ("macro", "micro")
        }
        per_class = f1_score(references, predictions, labels=labels, average=None, zero_division=0)
        return scores | {f"f1/{label}": float(value) for label, value in zip(labels, per_class, strict=True)}

    def sufficient_statistics(self, *, predictions: list[str], references: list[str]) -> dict[str, list[list[float]]]:
        """As `label_set_statistics`, for sets of at most one label."""
        return label_set_statistics([[p] if p else [] for p in predictions], [[r] for r in references])


def label_set_statistics(predictions: list[list[str]], references: list[list[str]]) -> dict[str, list[list[float]]]:
    """Per example: true positives, predicted labels, expected labels; of each class (macro) and of all (micro).

    `macro_f1` is absent if there are more than `MAX_CLASSES` classes.
    """
    pairs = [(set(p), set(r)) for p, r in zip(predictions, references, strict=True)]
    statistics = {"micro_f1": [[float(len(labels)) for labels in (p & r, p, r)] for p, r in pairs]}
    expected = sorted(set().union(*references))  # first, so that all runs on the same data have the same columns
    labels = [*expected, *sorted(set().union(*predictions).difference(expected))]
    if len(labels) > MAX_CLASSES:
        return statistics
    macro = [[float(label in part) for label in labels for part in (p & r, p, r)] for p, r in pairs]
    return {"macro_f1": macro} | statistics
