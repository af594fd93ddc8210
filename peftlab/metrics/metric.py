"""Interface of a metric, and the boilerplate that every metric shares."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from peftlab.component import Component

ColumnType = Literal["string", "strings", "float", "integer"]  # of one value; "strings" is a list of strings


class Metric(Component, abc.ABC):
    """Interface that every metric implements: scores of a set of predictions.

    A metric is one file in this package. The first line of its class docstring names it, its range and which direction
    is better: `peftlab list` prints that line. Libraries that are slow to import are imported inside the methods.

    Obligatory: `kind`, `citation`, `columns`, `scores` and `_compute`.
    Optional: `aggregates` with `sufficient_statistics`, for confidence intervals and paired tests, and `signature`.
    """

    citation: ClassVar[str]
    """Reference of the metric or of the library that computes it."""
    columns: ClassVar[Mapping[str, ColumnType]]
    """Type of each keyword argument of `compute`: "predictions", "references" or a key of the task's records."""
    scores: ClassVar[tuple[str, ...]]
    """Names of the scores that `compute` returns; "f1/*" stands for one score per class. The main score comes first."""
    aggregates: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """For each score with sufficient statistics, its function in `statistics.aggregates.AGGREGATES`."""

    @abc.abstractmethod
    def _compute(self, *args: Any, **columns: Any) -> dict[str, float]:
        """Scores by name, for one sequence of values per column. Leave out a score that is undefined for them.

        An implementation names its columns as keyword arguments: `def _compute(self, *, predictions, references)`.
        """

    def sufficient_statistics(self, *args: Any, **columns: Any) -> dict[str, list[list[float]]]:
        """For each score of `aggregates`, one row of numbers per value of a column.

        The aggregate of the summed rows is the score, so that any subset or resample of the examples can be scored.
        Takes what `_compute` takes.
        """
        return {}

    def signature(self) -> str | None:
        """The library's description of how it computed: tokenizer, smoothing, version. None if it gives none."""
        return None

    def compute(self, **columns: Any) -> dict[str, float]:
        """Scores by name, through `evaluate`, which checks lengths and types of the columns and raises ValueError.

        A score that is undefined for these values is absent.
        """
        scores: dict[str, float] = _evaluate_metric(self).compute(**columns)
        return scores


def _evaluate_metric(metric: Metric) -> Any:
    """The metric as an `evaluate.Metric`."""
    import datasets  # late: start-up time
    import evaluate

    types = {
        "string": datasets.Value("string"),
        "strings": datasets.List(datasets.Value("string")),
        "float": datasets.Value("float64"),
        "integer": datasets.Value("int64"),
    }

    class EvaluateMetric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description=inspect.getdoc(metric) or "",
                citation=metric.citation,
                inputs_description=", ".join(f"{column}: {type_}" for column, type_ in metric.columns.items()),
                features=datasets.Features({column: types[type_] for column, type_ in metric.columns.items()}),
            )

        def _compute(self, **columns: Any) -> dict[str, float]:
            return metric._compute(**columns)

    return EvaluateMetric(keep_in_memory=True)
