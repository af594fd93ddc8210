"""Data types between sources, tasks and the training loop: rows as read, examples as encoded."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any


@dataclass(frozen=True)
class Row:
    """One record of a data set."""

    where: str
    """File and line for messages, e.g. "data/train.jsonl:12"; the path can be opened."""
    fields: Mapping[str, Any]
    """Values by the names that the task gives them; in `Data.read`, by the columns of the source."""
    fault: str | None = None
    """Reason why the row cannot be used, e.g. "not JSON: ..."; None for a good row."""

    @property
    def file_and_line(self) -> str:
        """`where` without folders, which are specific to one machine.

        >>> Row("mine/train.jsonl:12", {}).file_and_line
        'train.jsonl:12'
        """
        return PurePath(self.where).name


@dataclass(frozen=True)
class Unreadable:
    """A value that no task can use, in place of the value. It makes a row bad only if a field is read from it."""

    reason: str
    """E.g. "the key occurs twice in one object"."""


@dataclass(frozen=True)
class Splits:
    """The rows of a data set by split, with their provenance."""

    rows: dict[str, list[Row]]
    """Rows of "train", "validation" and "test"."""
    source: str
    """Description of the source, for people."""
    fingerprint: str
    """sha256 of the rows' content."""
    skipped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Number of skipped rows by split and reason."""
    leaks: Mapping[str, int] = field(default_factory=dict)
    """Number of rows by split whose input occurs in train too."""


@dataclass(frozen=True)
class Example:
    """One encoded row, a window of it or a choice for it. Its length is that of `input_ids`."""

    features: dict[str, list[int]]
    """Sequences of integers by the model's argument names, not padded."""
    row: Row

    def __len__(self) -> int:
        return len(self.features["input_ids"])


@dataclass(frozen=True)
class Encoded:
    """Encoded rows."""

    examples: list[Example]
    counts: dict[str, int]
    """Counts of what encoding lost, e.g. {"truncated_sentences": 3, "lost_entities": 4}."""

    @property
    def rows(self) -> list[Row]:
        """Each row once, in order. The examples of a row are consecutive."""
        rows = (example.row for example in self.examples)
        return [next(same) for _, same in itertools.groupby(rows, key=id)]
