"""Pearson correlation coefficient, by SciPy (Virtanen et al., 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from peftlab.metrics.metric import ColumnType, Metric


class Pearson(Metric):
    """Pearson correlation of predicted and reference values, in [-1, 1]; higher is better.

    Undefined, and absent, if all predictions or all references are the same number.

    >>> Pearson().compute(predictions=[1.0, 1.0], references=[1.0, 2.0])
    {}
    """

    kind: Literal["pearson"] = "pearson"
    citation: ClassVar[str] = (
        "Virtanen et al., 2020. SciPy 1.0: Fundamental Algorithms for Scientific Computing. Nature Methods 17, 261-272"
    )
    columns: ClassVar[Mapping[str, ColumnType]] = {"predictions": "float", "references": "float"}
    scores: ClassVar[tuple[str, ...]] = ("pearson",)
    aggregates: ClassVar[Mapping[str, str]] = {"pearson": "pearson"}

    def _compute(self, *, predictions: list[float], references: list[float]) -> dict[str, float]:
        from scipy.stats import pearsonr

        if min(len(set(predictions)), len(set(references))) < 2:
            return {}
        return {"pearson": float(pearsonr(references, predictions).statistic)}

    def sufficient_statistics(
        self, *, predictions: list[float], references: list[float]
    ) -> dict[str, list[list[float]]]:
        """Per pair 1, x, y, x^2, y^2, x y, of values minus their mean: large numbers would lose digits."""
        x_mean, y_mean = (sum(values) / len(values) for values in (predictions, references))
        pairs = [(p - x_mean, r - y_mean) for p, r in zip(predictions, references, strict=True)]
        return {"pearson": [[1.0, x, y, x * x, y * y, x * y] for x, y in pairs]}
