"""Fine-tuning methods that a recipe can name. A new method is one new file in this package."""

import sys
from typing import TYPE_CHECKING

from peftlab.component import discover, tagged_union
from peftlab.methods.method import Method, TrainingPlan

METHODS: dict[str, type[Method]] = discover(sys.modules[__name__], Method)  # type: ignore[type-abstract]

if TYPE_CHECKING:
    AnyMethod = Method
else:
    AnyMethod = tagged_union(METHODS)

__all__ = ["METHODS", "AnyMethod", "Method", "TrainingPlan"]
