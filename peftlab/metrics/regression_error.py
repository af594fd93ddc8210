"""How far predicted numbers are from the right ones: R2, root mean squared and mean absolute error, by scikit-learn."""

from __future__ import annotations

from typing import ClassVar

import datasets
import evaluate
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

_CITATION = "Pedregosa et al., 2011. Scikit-learn: Machine Learning in Python. JMLR 12, 2825-2830"


class Metric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """Numbers in; errors in the references' unit out, and R2: 1 is perfect, 0 as good as the references' mean.

    R2 is undefined, and absent, if all references are one number.

    >>> Metric(keep_in_memory=True).compute(predictions=[2.0, 3.0], references=[1.0, 3.0])
    {'rmse': 0.7071067811865476, 'mae': 0.5, 'r2': 0.5}
    """

    counted: ClassVar[dict[str, str]] = {"r2": "r2"}

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=str(self.__doc__),
            citation=_CITATION,
            inputs_description="predictions, references: a number each",
            features=datasets.Features({"predictions": number, "references": number}),
        )

    def _compute(self, *, predictions: list[float], references: list[float]) -> dict[str, float]:
        scores = {
            "rmse": float(root_mean_squared_error(references, predictions)),
            "mae": float(mean_absolute_error(references, predictions)),
        }
        if len(set(references)) < 2:
            return scores
        return scores | {"r2": float(r2_score(references, predictions))}

    def counts(self, *, predictions: list[float], references: list[float]) -> dict[str, list[list[float]]]:
        """Of each pair the powers of the reference, about their mean, and the squared error."""
        mean = sum(references) / len(references)
        pairs = [(r - mean, p - r) for p, r in zip(predictions, references, strict=True)]
        return {"r2": [[1.0, y, y * y, error * error] for y, error in pairs]}
