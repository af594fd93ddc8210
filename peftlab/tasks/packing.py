"""Packing: several rows in one sequence, each with its own position ids, none attending to another."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from peftlab.data.examples import Example


def pack(examples: Sequence[Example], limit: int) -> list[Example]:
    """Examples of at most `limit` tokens, with `position_ids` that restart at 0 for each row. Best-fit decreasing."""
    bins: list[list[Example]] = []
    free: list[tuple[int, int]] = []  # free tokens and number of each bin, sorted
    for example in sorted(examples, key=len, reverse=True):
        index = bisect.bisect_left(free, (len(example), 0))
        tokens, number = free.pop(index) if index < len(free) else (limit, len(bins))
        if number == len(bins):
            bins.append([])
        bins[number].append(example)
        bisect.insort(free, (tokens - len(example), number))
    return [_concatenate(rows) for rows in bins]


def _concatenate(rows: Sequence[Example]) -> Example:
    features = {
        "input_ids": [token for row in rows for token in row.features["input_ids"]],
        "labels": [label for row in rows for label in row.features["labels"]],
        "position_ids": [position for row in rows for position in range(len(row))],
    }
    return Example(features, rows[0].row)
