"""What flows between data, task and loop: rows as read, examples as encoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One record of a data set, its fields under the task's names."""

    where: str  # "train.jsonl:12", for messages
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Splits:
    """The rows of a data set, and what identifies them."""

    rows: dict[str, list[Row]]  # "train", "validation", "test"
    source: str  # where they came from, for people
    fingerprint: str  # sha256 of the rows' content


@dataclass(frozen=True)
class Example:
    """One encoded row, or a window of it: integer sequences by the model's argument names, not padded.

    Its length is that of what the model reads.
    """

    features: dict[str, list[int]]
    row: Row

    def __len__(self) -> int:
        return len(self.features["input_ids"])


@dataclass(frozen=True)
class Encoded:
    """Examples, and what encoding had to leave out: `{"truncated_sentences": 3, "lost_entities": 4}`."""

    examples: list[Example]
    counts: dict[str, int]
