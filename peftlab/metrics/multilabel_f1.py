"""F1 of label sets, and the fraction of sets that match exactly, by scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from peftlab.metrics.f1 import label_set_statistics
from peftlab.metrics.metric import ColumnType, Metric


class MultilabelF1(Metric):
    """F1 of label sets: micro and macro average, and exact matches, in [0, 1]; higher is better.

    The labels are those that occur in predictions or references; F1 is undefined if there are none.

    >>> scores = MultilabelF1().compute(predictions=[["a"], ["a", "b"]], references=[["a"], ["b"]])
    >>> {name: round(value, 3) for name, value in scores.items()}
    {'exact_match': 0.5, 'macro_f1': 0.833, 'micro_f1': 0.8, 'f1/a': 0.667, 'f1/b': 1.0}
    >>> MultilabelF1().compute(predictions=[["a"], ["a"], ["a"]], references=[["a"], [], []])["f1/a"]
    0.5
    """

    kind: Literal["multilabel_f1"] = "multilabel_f1"
    citation: ClassVar[str] = "Pedregosa et al., 2011. Scikit-learn: Machine Learning in Python. JMLR 12, 2825-2830"
    columns: ClassVar[Mapping[str, ColumnType]] = {"predictions": "strings", "references": "strings"}
    scores: ClassVar[tuple[str, ...]] = ("micro_f1", "macro_f1", "exact_match", "f1/*")
    aggregates: ClassVar[Mapping[str, str]] = {"macro_f1": "macro_f1", "micro_f1": "f1"}

    def _compute(self, *, predictions: list[list[str]], references: list[list[str]]) -> dict[str, float]:
        from sklearn.metrics import accuracy_score, f1_score
        from sklearn.preprocessing import MultiLabelBinarizer

        labels = sorted({label for labels in (*predictions, *references) for label in labels})
        exact = [set(p) == set(r) for p, r in zip(predictions, references, strict=True)]
        scores = {"exact_match": float(accuracy_score([True] * len(exact), exact))}
        if not labels:
            return scores
        # scikit-learn takes a table of one column for two classes: the last column belongs to no label.
        binarizer = MultiLabelBinarizer(classes=[*labels, ""])
        expected, predicted = binarizer.fit_transform(references), binarizer.transform(predictions)
        settings = {"labels": range(len(labels)), "zero_division": 0}
        for average in ("macro", "micro"):
            scores[f"{average}_f1"] = float(f1_score(expected, predicted, average=average, **settings))
        per_label = f1_score(expected, predicted, average=None, **settings)
        return scores | {f"f1/{label}": float(value) for label, value in zip(labels, per_label, strict=True)}

    def sufficient_statistics(
        self, *, predictions: list[list[str]], references: list[list[str]]
    ) -> dict[str, list[list[float]]]:
        """As `label_set_statistics`."""
        return label_set_statistics(predictions, references)
