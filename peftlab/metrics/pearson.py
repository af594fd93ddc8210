"""Pearson's correlation coefficient: how nearly linear predictions and references go together, by SciPy."""

from __future__ import annotations

from typing import ClassVar

import datasets
import evaluate
from scipy.stats import pearsonr

_CITATION = (
    "Virtanen et al., 2020. SciPy 1.0: Fundamental Algorithms for Scientific Computing. Nature Methods 17, 261-272"
)


class Metric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """Numbers in, a correlation in [-1, 1] out; undefined, and absent, if all predictions or references are one number.

    >>> Metric(keep_in_memory=True).compute(predictions=[1.0, 1.0], references=[1.0, 2.0])
    {}
    """

    counted: ClassVar[dict[str, str]] = {"pearson": "pearson"}

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=str(self.__doc__),
            citation=_CITATION,
            inputs_description="predictions, references: a number each",
            features=datasets.Features({"predictions": number, "references": number}),
        )

    def _compute(self, *, predictions: list[float], references: list[float]) -> dict[str, float]:
        if min(len(set(predictions)), len(set(references))) < 2:
            return {}
        return {"pearson": float(pearsonr(references, predictions).statistic)}

    def counts(self, *, predictions: list[float], references: list[float]) -> dict[str, list[list[float]]]:
        """Of each pair the powers about the means: a shift changes no correlation, and large numbers cost digits."""
        x_mean, y_mean = (sum(values) / len(values) for values in (predictions, references))
        pairs = [(p - x_mean, r - y_mean) for p, r in zip(predictions, references, strict=True)]
        return {"pearson": [[1.0, x, y, x * x, y * y, x * y] for x, y in pairs]}
