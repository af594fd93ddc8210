"""The precisions in which a frozen base may be held. A new one is a new file here; nothing else changes."""

import sys
from typing import TYPE_CHECKING

from peftlab.component import discover, tagged_union
from peftlab.quantization.quantization import Quantization

QUANTIZATIONS: dict[str, type[Quantization]] = discover(sys.modules[__name__], Quantization)

if TYPE_CHECKING:
    AnyQuantization = Quantization
else:
    AnyQuantization = tagged_union(QUANTIZATIONS)

__all__ = ["QUANTIZATIONS", "AnyQuantization", "Quantization"]
