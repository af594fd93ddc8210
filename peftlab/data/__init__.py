"""Where examples come from. A new source is a new file here; nothing else changes."""

import sys
from typing import TYPE_CHECKING

from peftlab.component import discover, tagged_union
from peftlab.data.data import Data

DATA: dict[str, type[Data]] = discover(sys.modules[__name__], Data)

if TYPE_CHECKING:
    AnyData = Data
else:
    AnyData = tagged_union(DATA, default="hub", key="id")

__all__ = ["DATA", "AnyData", "Data"]
