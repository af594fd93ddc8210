"""Accuracy: the share of answers that are right, by scikit-learn (Pedregosa et al., 2011)."""

from __future__ import annotations

from typing import ClassVar

import datasets
import evaluate
from sklearn.metrics import accuracy_score

_CITATION = "Pedregosa et al., 2011. Scikit-learn: Machine Learning in Python. JMLR 12, 2825-2830"


class Metric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """Labels in, a share in [0, 1] out.

    >>> Metric(keep_in_memory=True).compute(predictions=["a", "b"], references=["a", "a"])
    {'accuracy': 0.5}
    """

    counted: ClassVar[dict[str, str]] = {"accuracy": "mean"}

    def _info(self) -> evaluate.MetricInfo:
        label = datasets.Value("string")
        return evaluate.MetricInfo(
            description=str(self.__doc__),
            citation=_CITATION,
            inputs_description="predictions, references: a label each",
            features=datasets.Features({"predictions": label, "references": label}),
        )

    def _compute(self, *, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}

    def counts(self, *, predictions: list[str], references: list[str]) -> dict[str, list[list[float]]]:
        """Of each answer whether it is right."""
        return {"accuracy": [[float(p == r)] for p, r in zip(predictions, references, strict=True)]}
