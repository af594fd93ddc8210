"""Quantizations of the frozen base model that a recipe can name. A new one is one new file in this package."""

import sys
from typing import TYPE_CHECKING

from peftlab.component import discover, tagged_union
from peftlab.quantization.quantization import Quantization

QUANTIZATIONS: dict[str, type[Quantization]] = discover(sys.modules[__name__], Quantization)  # type: ignore[type-abstract]

if TYPE_CHECKING:
    AnyQuantization = Quantization
else:
    AnyQuantization = tagged_union(QUANTIZATIONS)

__all__ = ["QUANTIZATIONS", "AnyQuantization", "Quantization"]
