"""The closed list of true reasons for a refusal, and the known faults of the libraries."""

from __future__ import annotations

import functools
import re
import tomllib
from pathlib import Path

REFUSALS: dict[str, str] = {}
"""Name of a reason, and the pattern of the messages that give it."""


def refusal(message: str) -> str | None:
    """Name of the reason that a message gives, or None if it gives none of the list."""
    return next((name for name, pattern in REFUSALS.items() if re.search(pattern, message)), None)


@functools.cache
def _faults() -> list[dict[str, str]]:
    return list(tomllib.loads(Path(__file__).with_name("upstream.toml").read_text(encoding="utf-8"))["fault"])


def upstream(architecture: str, task: str, message: str) -> str | None:
    """The known fault of a library that a message shows, or None."""
    for fault in _faults():
        names = (fault["architecture"], fault.get("task", task))
        if (architecture, task) == names and re.search(fault["message"], message):
            return fault["reason"]
    return None
