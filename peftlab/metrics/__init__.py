"""The metrics: one `evaluate.Metric` a file, around the library that the field cites; none needs a network."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import evaluate

METRICS = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def load_metric(name: str) -> evaluate.Metric:
    """The metric of this name, as `evaluate.load` would give it. Importing `evaluate` takes half a second."""
    return importlib.import_module(f"{__name__}.{name}").Metric(keep_in_memory=True)


class Counts(NamedTuple):
    """What a metric's main score is computed of, example by example: enough to resample it without the data."""

    score: str  # e.g. "entity_f1"
    form: str  # of `statistics.FORMS`: how summed rows make the score
    rows: list[list[float]]  # one an example


def count(name: str, predictions: Sequence[Any], references: Sequence[Any]) -> Counts | None:
    """The counts of a metric; None if it has no `counts`, as a score that is no function of sums has none.

    A metric that has them says `counted = ("entity_f1", "f1")` and `counts(prediction, reference) -> list[float]`.
    """
    metric: Any = load_metric(name)
    if not hasattr(metric, "counts"):
        return None
    rows = [metric.counts(*pair) for pair in zip(predictions, references, strict=True)]
    score, form = metric.counted
    return Counts(score, form, rows)
