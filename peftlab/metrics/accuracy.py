"""Accuracy, by scikit-learn (Pedregosa et al., 2011)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from peftlab.metrics.metric import ColumnType, Metric


class Accuracy(Metric):
    """Accuracy: fraction of correct predictions, in [0, 1]; higher is better.

    >>> Accuracy().compute(predictions=["a", "b"], references=["a", "a"])
    {'accuracy': 0.5}
    """

    kind: Literal["accuracy"] = "accuracy"
    citation: ClassVar[str] = "Pedregosa et al., 2011. Scikit-learn: Machine Learning in Python. JMLR 12, 2825-2830"
    columns: ClassVar[Mapping[str, ColumnType]] = {"predictions": "string", "references": "string"}
    scores: ClassVar[tuple[str, ...]] = ("accuracy",)
    aggregates: ClassVar[Mapping[str, str]] = {"accuracy": "mean"}

    def _compute(self, *, predictions: list[str], references: list[str]) -> dict[str, float]:
        from sklearn.metrics import accuracy_score

        return {"accuracy": float(accuracy_score(references, predictions))}

    def sufficient_statistics(self, *, predictions: list[str], references: list[str]) -> dict[str, list[list[float]]]:
        """1 for a correct prediction, else 0."""
        return {"accuracy": [[float(p == r)] for p, r in zip(predictions, references, strict=True)]}
