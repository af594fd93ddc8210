"""Spearman's rank correlation: how nearly predictions put the references in order, by SciPy."""

from __future__ import annotations

import datasets
import evaluate
from scipy.stats import spearmanr

_CITATION = (
    "Virtanen et al., 2020. SciPy 1.0: Fundamental Algorithms for Scientific Computing. Nature Methods 17, 261-272"
)


class Metric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """Numbers in, a correlation in [-1, 1] out; undefined, and absent, if all predictions or references are one number.

    >>> Metric(keep_in_memory=True).compute(predictions=[1.0, 1.0], references=[1.0, 2.0])
    {}
    """

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
        return {"spearman": float(spearmanr(references, predictions).statistic)}
