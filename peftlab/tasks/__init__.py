"""Task families, one per file. A new file here is found by recipes, tests, tables and `peftlab list`."""

import sys
from typing import TYPE_CHECKING

from peftlab.component import discover, tagged_union
from peftlab.tasks.task import Task

TASKS: dict[str, type[Task]] = discover(sys.modules[__name__], Task)  # type: ignore[type-abstract]

if TYPE_CHECKING:
    AnyTask = Task
else:
    AnyTask = tagged_union(TASKS)

__all__ = ["TASKS", "AnyTask", "Task"]
