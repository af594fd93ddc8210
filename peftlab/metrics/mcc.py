"""Matthews' correlation coefficient (Matthews, 1975; Gorodkin, 2004, for more than two classes), by scikit-learn."""

from __future__ import annotations

from typing import ClassVar

import datasets
import evaluate
from sklearn.metrics import matthews_corrcoef

_CITATION = "Pedregosa et al., 2011. Scikit-learn: Machine Learning in Python. JMLR 12, 2825-2830"


class Metric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """Labels in, a correlation in [-1, 1] out; undefined, and absent, if all predictions or references are one class.

    >>> Metric(keep_in_memory=True).compute(predictions=["a", "a"], references=["a", "b"])
    {}
    """

    counted: ClassVar[dict[str, str]] = {"mcc": "mcc"}

    def _info(self) -> evaluate.MetricInfo:
        label = datasets.Value("string")
        return evaluate.MetricInfo(
            description=str(self.__doc__),
            citation=_CITATION,
            inputs_description="predictions, references: a label each",
            features=datasets.Features({"predictions": label, "references": label}),
        )

    def _compute(self, *, predictions: list[str], references: list[str]) -> dict[str, float]:
        if min(len(set(predictions)), len(set(references))) < 2:  # scikit-learn would say 0
            return {}
        return {"mcc": float(matthews_corrcoef(references, predictions))}

    def counts(self, *, predictions: list[str], references: list[str]) -> dict[str, list[list[float]]]:
        """Of each answer which of the four cells it falls into, if there are two classes."""
        classes = sorted({*predictions, *references})
        if len(classes) != 2:
            return {}
        yes = classes[1]
        pairs = [(p == yes, r == yes) for p, r in zip(predictions, references, strict=True)]
        cells = [(True, True), (True, False), (False, True), (False, False)]
        return {"mcc": [[float(pair == cell) for cell in cells] for pair in pairs]}
