"""What flows between data, task and loop: rows as read, examples as encoded."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any


@dataclass(frozen=True)
class Row:
    """One record of a data set, its fields under the task's names."""

    where: str  # "data/train.jsonl:12", a path that finds the file, for messages
    fields: Mapping[str, Any]
    fault: str | None = None  # "not JSON: ...": why nothing can be made of it, if so

    @property
    def file_and_line(self) -> str:
        """`where` without the folders, which are this machine's own.

        >>> Row("mine/train.jsonl:12", {}).file_and_line
        'train.jsonl:12'
        """
        return PurePath(self.where).name


@dataclass(frozen=True)
class Splits:
    """The rows of a data set, and what identifies them."""

    rows: dict[str, list[Row]]  # "train", "validation", "test"
    source: str  # where they came from, for people
    fingerprint: str  # sha256 of the rows' content
    skipped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # split -> reason -> rows left out
    leaks: Mapping[str, int] = field(default_factory=dict)  # split -> rows whose input is in train too


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

    @property
    def rows(self) -> list[Row]:
        """Each row once, in order: a row's windows or choices stand next to each other."""
        rows = (example.row for example in self.examples)
        return [next(same) for _, same in itertools.groupby(rows, key=id)]
