"""R2, root mean squared error and mean absolute error, by scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from peftlab.metrics.metric import ColumnType, Metric


class RegressionError(Metric):
    """R2 (at most 1, higher is better), root mean squared and mean absolute error (from 0, lower is better).

    Errors are in the unit of the references. R2 is 0 for a model as good as the references' mean; it is undefined, and
    absent, if all references are the same number.

    >>> RegressionError().compute(predictions=[2.0, 3.0], references=[1.0, 3.0])
    {'rmse': 0.7071067811865476, 'mae': 0.5, 'r2': 0.5}
    """

    kind: Literal["regression_error"] = "regression_error"
    citation: ClassVar[str] = "Pedregosa et al., 2011. Scikit-learn: Machine Learning in Python. JMLR 12, 2825-2830"
    columns: ClassVar[Mapping[str, ColumnType]] = {"predictions": "float", "references": "float"}
    scores: ClassVar[tuple[str, ...]] = ("r2", "rmse", "mae")
    aggregates: ClassVar[Mapping[str, str]] = {"r2": "r2"}

    def _compute(self, *, predictions: list[float], references: list[float]) -> dict[str, float]:
        from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

        scores = {
            "rmse": float(root_mean_squared_error(references, predictions)),
            "mae": float(mean_absolute_error(references, predictions)),
        }
        if len(set(references)) < 2:
            return scores
        return scores | {"r2": float(r2_score(references, predictions))}

    def sufficient_statistics(
        self, *, predictions: list[float], references: list[float]
    ) -> dict[str, list[list[float]]]:
        """Per pair 1, y, y^2 and the squared error, for y the reference minus the references' mean."""
        mean = sum(references) / len(references)
        pairs = [(r - mean, p - r) for p, r in zip(predictions, references, strict=True)]
        return {"r2": [[1.0, y, y * y, error * error] for y, error in pairs]}
