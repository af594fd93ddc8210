"""Spearman rank correlation coefficient, by SciPy (Virtanen et al., 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from peftlab.metrics.metric import ColumnType, Metric


class Spearman(Metric):
    """Spearman rank correlation of predicted and reference values, in [-1, 1]; higher is better.

    Undefined, and absent, if all predictions or all references are the same number.

    >>> Spearman().compute(predictions=[1.0, 1.0], references=[1.0, 2.0])
    {}
    """

    kind: Literal["spearman"] = "spearman"
    citation: ClassVar[str] = (
        "Virtanen et al., 2020. SciPy 1.0: Fundamental Algorithms for Scientific Computing. Nature Methods 17, 261-272"
    )
    columns: ClassVar[Mapping[str, ColumnType]] = {"predictions": "float", "references": "float"}
    scores: ClassVar[tuple[str, ...]] = ("spearman",)

    def _compute(self, *, predictions: list[float], references: list[float]) -> dict[str, float]:
        from scipy.stats import spearmanr

        if min(len(set(predictions)), len(set(references))) < 2:
            return {}
        return {"spearman": float(spearmanr(references, predictions).statistic)}
