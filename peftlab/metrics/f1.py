"""F1 of classes: macro, micro and each, by scikit-learn (Pedregosa et al., 2011)."""

from __future__ import annotations

import datasets
import evaluate
from sklearn.metrics import f1_score

_CITATION = "Pedregosa et al., 2011. Scikit-learn: Machine Learning in Python. JMLR 12, 2825-2830"


class Metric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """Labels in, F1 in [0, 1] out: the mean over classes (macro), over all answers (micro), and of each class.

    The classes are those that occur among predictions or references; an empty prediction is no answer.

    >>> scores = Metric(keep_in_memory=True).compute(predictions=["a", "b", ""], references=["a", "a", "b"])
    >>> {name: round(value, 3) for name, value in scores.items()}
    {'macro_f1': 0.333, 'micro_f1': 0.4, 'f1/a': 0.667, 'f1/b': 0.0}
    """

    def _info(self) -> evaluate.MetricInfo:
        label = datasets.Value("string")
        return evaluate.MetricInfo(
            description=str(self.__doc__),
            citation=_CITATION,
            inputs_description="predictions, references: a label each",
            features=datasets.Features({"predictions": label, "references": label}),
        )

    def _compute(self, *, predictions: list[str], references: list[str]) -> dict[str, float]:
        labels = sorted({*predictions, *references} - {""})
        scores = {
            f"{average}_f1": float(f1_score(references, predictions, labels=labels, average=average, zero_division=0))
            for average in ("macro", "micro")
        }
        each = f1_score(references, predictions, labels=labels, average=None, zero_division=0)
        return scores | {f"f1/{label}": float(value) for label, value in zip(labels, each, strict=True)}
