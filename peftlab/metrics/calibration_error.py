"""Expected calibration error (Guo et al., 2017), by scikit-learn's calibration curve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from peftlab.metrics.metric import ColumnType, Metric


class CalibrationError(Metric):
    """Expected calibration error: gap between confidence and accuracy, in [0, 1]; lower is better.

    Mean over bins of equal width of |accuracy - mean probability|, weighted by the number of predictions in each.

    >>> CalibrationError().compute(predictions=["a", "a"], references=["a", "b"], probability=[0.9, 0.9])
    {'calibration_error': 0.4}
    """

    kind: Literal["calibration_error"] = "calibration_error"
    citation: ClassVar[str] = "Guo et al., 2017. On Calibration of Modern Neural Networks. ICML, arXiv:1706.04599"
    columns: ClassVar[Mapping[str, ColumnType]] = {
        "predictions": "string",
        "references": "string",
        "probability": "float",
    }
    scores: ClassVar[tuple[str, ...]] = ("calibration_error",)

    bins: int = Field(15, ge=1)
    """Number of bins between 0 and 1; 15 as in the paper."""

    def _compute(self, *, predictions: list[str], references: list[str], probability: list[float]) -> dict[str, float]:
        import numpy as np
        from sklearn.calibration import calibration_curve

        correct = np.array([p == r for p, r in zip(predictions, references, strict=True)])
        accuracy, confidence = calibration_curve(correct, probability, pos_label=True, n_bins=self.bins)
        # Sizes of scikit-learn's bins; its curve leaves out the empty ones.
        edges = np.linspace(0.0, 1.0, self.bins + 1)[1:-1]
        sizes = np.bincount(np.searchsorted(edges, probability), minlength=self.bins)
        return {"calibration_error": float(np.average(np.abs(accuracy - confidence), weights=sizes[sizes > 0]))}
