"""Metrics, one per file, each computed by the library that papers cite; none needs a network."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from peftlab.component import discover
from peftlab.metrics.metric import Metric

METRICS: dict[str, type[Metric]] = discover(sys.modules[__name__], Metric)  # type: ignore[type-abstract]

RECORD_KEYS = {"predictions": "predicted", "references": "expected"}
"""Keys of a record by the names that metrics give them; any other column has the name of its key."""


def load_metric(name: str) -> Metric:
    """The metric of this name, with its default settings."""
    return METRICS[name].model_validate({})


def signatures(names: Iterable[str]) -> dict[str, str]:
    """Signatures of those metrics whose library gives one: tokenizer, smoothing, version."""
    texts = {name: load_metric(name).signature() for name in names}
    return {name: text for name, text in texts.items() if text is not None}


def score(names: Iterable[str], records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Scores of decoded records by these metrics. A score that is undefined for them is absent.

    A metric reads `predicted`, `expected` and the other keys that it lists in `columns`. It skips records in which one
    of these is None, e.g. examples for which no text was generated.
    """
    scores: dict[str, float] = {}
    for name in names:
        metric = load_metric(name)
        columns = _columns(metric, records)
        if any(columns.values()):
            scores |= metric.compute(**columns)
    return scores


class SufficientStatistics(NamedTuple):
    """Numbers per example from which a score can be computed for any resample of the examples."""

    score: str
    """Name of the score, e.g. "entity_f1"."""
    aggregate: str
    """Function of `statistics.aggregates.AGGREGATES` that turns summed rows into the score."""
    rows: list[list[float]]
    """One row per example."""


def sufficient_statistics(
    names: Iterable[str], rows: Iterable[Sequence[Mapping[str, Any]]]
) -> list[SufficientStatistics]:
    """Sufficient statistics of these metrics' scores, one row per data row, as far as the metrics have any.

    `rows` holds the records of each data row. The records of one row are not independent (the words of a sentence), so
    that they count as one example.
    """
    rows = list(rows)
    statistics = []
    for name in names:
        metric = load_metric(name)
        if not metric.aggregates:
            continue
        complete = [_complete(metric, records) for records in rows]
        sizes = [len(records) for records in complete]
        flat = _columns(metric, list(itertools.chain.from_iterable(complete)))
        if any(sizes):
            for score_name, per_record in metric.sufficient_statistics(**flat).items():
                aggregate, per_row = _sum_by_row(metric.aggregates[score_name], per_record, sizes)
                statistics.append(SufficientStatistics(score_name, aggregate, per_row))
    return statistics


def _sum_by_row(aggregate: str, rows: list[list[float]], sizes: Sequence[int]) -> tuple[str, list[list[float]]]:
    """Statistics of records, summed over the `sizes` records of each data row. A mean becomes a ratio of sums.

    >>> _sum_by_row("mean", [[1.0], [0.0], [1.0]], [2, 1])
    ('ratio', [[1.0, 2], [1.0, 1]])
    """
    if all(size <= 1 for size in sizes):
        return aggregate, rows
    if aggregate == "mean":
        aggregate, rows = "ratio", [[*row, 1] for row in rows]
    remaining = iter(rows)
    groups = [list(itertools.islice(remaining, size)) for size in sizes]
    return aggregate, [[sum(column) for column in zip(*group, strict=True)] for group in groups if group]


def prediction_keys(names: Iterable[str]) -> list[str]:
    """The keys of a record that these metrics read, except the expected answer: everything that the model predicted.

    >>> prediction_keys(["entity_f1"])
    ['predicted']
    """
    keys = {RECORD_KEYS.get(column, column) for name in names for column in METRICS[name].columns}
    return sorted(keys - {"expected"})


def _columns(metric: Metric, records: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The metric's columns, from the records in which none of them is None."""
    complete = _complete(metric, records)
    keys = {column: RECORD_KEYS.get(column, column) for column in metric.columns}
    return {column: [record[key] for record in complete] for column, key in keys.items()}


def _complete(metric: Metric, records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records in which none of the metric's columns is None."""
    complete = list(records)
    for column in metric.columns:
        key = RECORD_KEYS.get(column, column)
        complete = [record for record in complete if record[key] is not None]
    return complete
