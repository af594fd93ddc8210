"""Expected calibration error (Guo et al., 2017): how far probabilities are from the share that is right, in 15 bins."""

from __future__ import annotations

import datasets
import evaluate
import numpy as np
from sklearn.calibration import calibration_curve

_CITATION = "Guo et al., 2017. On Calibration of Modern Neural Networks. ICML, arXiv:1706.04599"
BINS = 15  # as in the paper


class Metric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """Labels and the probability of each predicted one in; the mean distance of bins from the diagonal, in [0, 1], out.

    >>> Metric(keep_in_memory=True).compute(predictions=["a", "a"], references=["a", "b"], probability=[0.9, 0.9])
    {'calibration_error': 0.4}
    """

    def _info(self) -> evaluate.MetricInfo:
        label = datasets.Value("string")
        return evaluate.MetricInfo(
            description=str(self.__doc__),
            citation=_CITATION,
            inputs_description="predictions, references: a label each; probability: that of the predicted label",
            features=datasets.Features(
                {"predictions": label, "references": label, "probability": datasets.Value("float64")}
            ),
        )

    def _compute(
        self, *, predictions: list[str], references: list[str], probability: list[float], bins: int = BINS
    ) -> dict[str, float]:
        right = np.array([one == other for one, other in zip(predictions, references, strict=True)])
        share, confidence = calibration_curve(right, probability, pos_label=True, n_bins=bins)
        # scikit-learn's bins, for how many are in each: it leaves the empty ones out.
        inside = np.bincount(np.searchsorted(np.linspace(0.0, 1.0, bins + 1)[1:-1], probability), minlength=bins)
        return {"calibration_error": float(np.average(np.abs(share - confidence), weights=inside[inside > 0]))}
