"""F1 of sets of labels: macro, micro and each, and the share of sets that are right, by scikit-learn."""

from __future__ import annotations

from typing import ClassVar

import datasets
import evaluate
from sklearn.metrics import accuracy_score, f1_score
from sklearn.preprocessing import MultiLabelBinarizer

from peftlab.metrics.f1 import label_counts

_CITATION = "Pedregosa et al., 2011. Scikit-learn: Machine Learning in Python. JMLR 12, 2825-2830"


class Metric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """Lists of labels in; F1 over all labels and answers (micro), the mean over labels (macro), and exact matches out.

    The labels are those that occur among predictions or references; F1 is undefined if there are none.

    >>> scores = Metric(keep_in_memory=True).compute(predictions=[["a"], ["a", "b"]], references=[["a"], ["b"]])
    >>> {name: round(value, 3) for name, value in scores.items()}
    {'exact_match': 0.5, 'macro_f1': 0.833, 'micro_f1': 0.8, 'f1/a': 0.667, 'f1/b': 1.0}
    >>> Metric(keep_in_memory=True).compute(predictions=[["a"], ["a"], ["a"]], references=[["a"], [], []])["f1/a"]
    0.5
    """

    counted: ClassVar[dict[str, str]] = {"macro_f1": "macro_f1", "micro_f1": "f1"}

    def _info(self) -> evaluate.MetricInfo:
        labels = datasets.List(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=str(self.__doc__),
            citation=_CITATION,
            inputs_description="predictions, references: a list of labels each",
            features=datasets.Features({"predictions": labels, "references": labels}),
        )

    def _compute(self, *, predictions: list[list[str]], references: list[list[str]]) -> dict[str, float]:
        labels = sorted({label for labels in (*predictions, *references) for label in labels})
        exact = [set(one) == set(other) for one, other in zip(predictions, references, strict=True)]
        scores = {"exact_match": float(accuracy_score([True] * len(exact), exact))}
        if not labels:
            return scores
        # A table of one column would be taken for two classes: the last column is nobody's.
        table = MultiLabelBinarizer(classes=[*labels, ""])
        right, found = table.fit_transform(references), table.transform(predictions)
        columns = range(len(labels))
        for average in ("macro", "micro"):
            scores[f"{average}_f1"] = float(f1_score(right, found, labels=columns, average=average, zero_division=0))
        each = f1_score(right, found, labels=columns, average=None, zero_division=0)
        return scores | {f"f1/{label}": float(value) for label, value in zip(labels, each, strict=True)}

    def counts(self, *, predictions: list[list[str]], references: list[list[str]]) -> dict[str, list[list[float]]]:
        """Of each example the labels found rightly, predicted, expected: of each class, and of all."""
        return label_counts(predictions, references)
