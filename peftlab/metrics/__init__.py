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


def signatures(names: Iterable[str]) -> dict[str, str]:
    """How the libraries counted, in their own words (tokenizer, smoothing, version), for the metrics that say it."""
    found = {name: getattr(load_metric(name), "signature", None) for name in names}
    return {name: say() for name, say in found.items() if say is not None}


def score(names: Iterable[str], records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """These metrics over decoded records. One that is undefined for them (one class only, say) is absent.

    A metric is given `predicted` and `expected` of each record, and whatever else its features name. It does not count
    records that say None there, e.g. of examples for which no text was generated.
    """
    keys = {"predictions": "predicted", "references": "expected"}
    scores: dict[str, float] = {}
    for name in names:
        metric = load_metric(name)
        columns = {column: keys.get(column, column) for column in metric.features}
        whole = [record for record in records if all(record[key] is not None for key in columns.values())]
        if whole:
            scores |= metric.compute(**{column: [record[key] for record in whole] for column, key in columns.items()})
    return scores
