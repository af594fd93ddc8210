"""Matthews correlation coefficient (Matthews, 1975; Gorodkin, 2004), by scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from peftlab.metrics.metric import ColumnType, Metric


class Mcc(Metric):
    """Matthews correlation coefficient of predicted classes, in [-1, 1]; higher is better.

    Undefined, and absent, if all predictions or all references are of one class.

    >>> Mcc().compute(predictions=["a", "a"], references=["a", "b"])
    {}
    """

    kind: Literal["mcc"] = "mcc"
    citation: ClassVar[str] = "Pedregosa et al., 2011. Scikit-learn: Machine Learning in Python. JMLR 12, 2825-2830"
    columns: ClassVar[Mapping[str, ColumnType]] = {"predictions": "string", "references": "string"}
    scores: ClassVar[tuple[str, ...]] = ("mcc",)
    aggregates: ClassVar[Mapping[str, str]] = {"mcc": "mcc"}

    def _compute(self, *, predictions: list[str], references: list[str]) -> dict[str, float]:
        from sklearn.metrics import matthews_corrcoef

        if min(len(set(predictions)), len(set(references))) < 2:  # scikit-learn returns 0 here
            return {}
        return {"mcc": float(matthews_corrcoef(references, predictions))}

    def sufficient_statistics(self, *, predictions: list[str], references: list[str]) -> dict[str, list[list[float]]]:
        """Per prediction, a 1 in one of: true positive, false positive, false negative, true negative.

        Absent unless there are exactly two classes.
        """
        classes = sorted({*predictions, *references})
        if len(classes) != 2:
            return {}
        positive = classes[1]
        pairs = [(p == positive, r == positive) for p, r in zip(predictions, references, strict=True)]
        cells = [(True, True), (True, False), (False, True), (False, False)]
        return {"mcc": [[float(pair == cell) for cell in cells] for pair in pairs]}
