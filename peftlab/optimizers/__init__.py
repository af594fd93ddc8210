"""Optimizers that a recipe can name. A new one is one new file in this package."""

import sys
from typing import TYPE_CHECKING

from peftlab.component import discover, tagged_union
from peftlab.optimizers.optimizer import Optimizer

OPTIMIZERS: dict[str, type[Optimizer]] = discover(sys.modules[__name__], Optimizer)  # type: ignore[type-abstract]

if TYPE_CHECKING:
    AnyOptimizer = Optimizer
else:
    AnyOptimizer = tagged_union(OPTIMIZERS)

__all__ = ["OPTIMIZERS", "AnyOptimizer", "Optimizer"]
