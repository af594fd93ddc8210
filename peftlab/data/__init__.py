"""Sources of training and test data. A new file here is found by recipes, tests and `peftlab list`."""

import sys
from typing import TYPE_CHECKING

from peftlab.component import discover, tagged_union
from peftlab.data.data import Data

DATA: dict[str, type[Data]] = discover(sys.modules[__name__], Data)  # type: ignore[type-abstract]

if TYPE_CHECKING:
    AnyData = Data
else:
    AnyData = tagged_union(DATA, default="hub", key="id")

__all__ = ["DATA", "AnyData", "Data"]
