"""The methods a recipe may name. A new one is a new file here; nothing else changes."""

import sys
from typing import TYPE_CHECKING

from peftlab.component import discover, tagged_union
from peftlab.methods.method import Method, TrainingPlan

METHODS: dict[str, type[Method]] = discover(sys.modules[__name__], Method)

if TYPE_CHECKING:
    AnyMethod = Method
else:
    AnyMethod = tagged_union(METHODS)

__all__ = ["METHODS", "AnyMethod", "Method", "TrainingPlan"]
