"""The methods a recipe may name. A new one is a new file here; nothing else changes."""

import sys
from typing import TYPE_CHECKING

from peftlab.methods.method import Method, Plan
from peftlab.part import discover, one_of

METHODS: dict[str, type[Method]] = discover(sys.modules[__name__], Method)

if TYPE_CHECKING:
    AnyMethod = Method
else:
    AnyMethod = one_of(METHODS)

__all__ = ["METHODS", "AnyMethod", "Method", "Plan"]
