"""The metrics: one `evaluate.Metric` a file, around the library that the field cites; none needs a network."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from typing import TYPE_CHECKING

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
