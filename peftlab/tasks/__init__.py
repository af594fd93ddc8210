"""The task families. A new one is a new file here; nothing else changes."""

import sys
from typing import TYPE_CHECKING

from peftlab.component import discover, tagged_union
from peftlab.tasks.task import Task

TASKS: dict[str, type[Task]] = discover(sys.modules[__name__], Task)

if TYPE_CHECKING:
    AnyTask = Task
else:
    AnyTask = tagged_union(TASKS)

__all__ = ["TASKS", "AnyTask", "Task"]
