"""The metrics: one `evaluate.Metric` a file, around the library that the field cites; none needs a network."""

from __future__ import annotations

import importlib
import itertools
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import evaluate

METRICS = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def load_metric(name: str) -> evaluate.Metric:
    """The metric of this name, as `evaluate.load` would give it. Importing `evaluate` takes half a second."""
    return importlib.import_module(f"{__name__}.{name}").Metric(keep_in_memory=True)


def signatures(names: Iterable[str]) -> dict[str, str]:
    """How the libraries counted, in their own words (tokenizer, smoothing, version), for the metrics that say it."""
    found = {name: getattr(load_metric(name), "signature", None) for name in names}
    return {name: say() for name, say in found.items() if say is not None}


KEYS = {"predictions": "predicted", "references": "expected"}  # of a record, by the names that metrics give them


def score(names: Iterable[str], records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """These metrics over decoded records. One that is undefined for them (one class only, say) is absent.

    A metric is given `predicted` and `expected` of each record, and whatever else its features name. It does not count
    records that say None there, e.g. of examples for which no text was generated.
    """
    scores: dict[str, float] = {}
    for name in names:
        metric = load_metric(name)
        inputs = _inputs(metric, records)
        if any(inputs.values()):
            scores |= metric.compute(**inputs)
    return scores


class Counts(NamedTuple):
    """What a score is computed of, example by example: enough to resample it without the data."""

    score: str  # e.g. "entity_f1"
    form: str  # of `aggregates.AGGREGATES`: how summed rows make the score
    rows: list[list[float]]  # one an example


def count(names: Iterable[str], rows: Iterable[Sequence[Mapping[str, Any]]]) -> list[Counts]:
    """The counts of those of the metrics that have some: a score that is no function of sums over examples has none.

    `rows` has each row's records. Where a row has several, as a sentence has a tag for each word, they are one example:
    they are not independent of each other. A metric that has counts says `counted = {"entity_f1": "f1"}`, forms by
    score, and its `counts` takes what `compute` takes and gives rows by score.
    """
    rows = list(rows)
    found = []
    for name in names:
        metric: Any = load_metric(name)
        if hasattr(metric, "counts"):
            columns = [_inputs(metric, records) for records in rows]
            sizes = [len(next(iter(inputs.values()))) for inputs in columns]
            flat = {column: [value for inputs in columns for value in inputs[column]] for column in metric.features}
            if any(sizes):
                counts = metric.counts(**flat)
                found += [Counts(score, *_by_row(metric.counted[score], counts[score], sizes)) for score in counts]
    return found


def _by_row(form: str, counts: list[list[float]], sizes: Sequence[int]) -> tuple[str, list[list[float]]]:
    """Counts of answers, `sizes` of them a row, as counts of rows. A mean over answers becomes a ratio of sums.

    >>> _by_row("mean", [[1.0], [0.0], [1.0]], [2, 1])
    ('ratio', [[1.0, 2], [1.0, 1]])
    """
    if all(size <= 1 for size in sizes):
        return form, counts
    if form == "mean":
        form, counts = "ratio", [[*row, 1] for row in counts]
    rest = iter(counts)
    parts = [list(itertools.islice(rest, size)) for size in sizes]
    return form, [[sum(column) for column in zip(*part, strict=True)] for part in parts if part]


def needed(names: Iterable[str]) -> list[str]:
    """The keys of a record that these metrics are given, beside what was expected: all of it the model's.

    >>> needed(["entity_f1"])
    ['predicted']
    """
    columns = {KEYS.get(column, column) for name in names for column in load_metric(name).features}
    return sorted(columns - {"expected"})


def _inputs(metric: evaluate.Metric, records: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    columns = {column: KEYS.get(column, column) for column in metric.features}
    whole = [record for record in records if all(record[key] is not None for key in columns.values())]
    return {column: [record[key] for record in whole] for column, key in columns.items()}
