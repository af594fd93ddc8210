"""Where examples come from. A new source is a new file here; nothing else changes."""

import sys
from typing import TYPE_CHECKING

from peftlab.data.data import Data
from peftlab.part import discover, one_of

DATA: dict[str, type[Data]] = discover(sys.modules[__name__], Data)

if TYPE_CHECKING:
    AnyData = Data
else:
    AnyData = one_of(DATA, default="hub", key="id")

__all__ = ["DATA", "AnyData", "Data"]
