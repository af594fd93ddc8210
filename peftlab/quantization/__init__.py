"""The precisions in which a frozen base may be held. A new one is a new file here; nothing else changes."""

import sys
from typing import TYPE_CHECKING

from peftlab.part import discover, one_of
from peftlab.quantization.quantization import Quantization

QUANTIZATIONS: dict[str, type[Quantization]] = discover(sys.modules[__name__], Quantization)

if TYPE_CHECKING:
    AnyQuantization = Quantization
else:
    AnyQuantization = one_of(QUANTIZATIONS)

__all__ = ["QUANTIZATIONS", "AnyQuantization", "Quantization"]
