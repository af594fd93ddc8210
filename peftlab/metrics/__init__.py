"""The metrics: one `evaluate.Metric` a file, around the library that the field cites; none needs a network."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import evaluate

METRICS = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def load_metric(name: str) -> evaluate.Metric:
    """The metric of this name, as `evaluate.load` would give it. Importing `evaluate` takes half a second."""
    return importlib.import_module(f"{__name__}.{name}").Metric(keep_in_memory=True)


def score(names: Iterable[str], records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """These metrics over decoded records. One that is undefined for them (one class only, say) is absent.

    A metric is given `predicted` and `expected` of each record, and whatever else its features name.
    """
    keys = {"predictions": "predicted", "references": "expected"}
    scores: dict[str, float] = {}
    for name in names:
        metric = load_metric(name)
        inputs = {column: [record[keys.get(column, column)] for record in records] for column in metric.features}
        scores |= metric.compute(**inputs)
    return scores
