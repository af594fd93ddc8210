"""Packing: several rows in one sequence, each with its own positions, and none that sees another."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from peftlab.data.examples import Example


def packed(examples: Sequence[Example], limit: int) -> list[Example]:
    """Examples of at most `limit` tokens with `position_ids` that begin anew with each row; longest first, best fit."""
    bins: list[list[Example]] = []
    room: list[tuple[int, int]] = []  # tokens left and number of each bin, sorted
    for example in sorted(examples, key=len, reverse=True):
        place = bisect.bisect_left(room, (len(example), 0))
        left, number = room.pop(place) if place < len(room) else (limit, len(bins))
        if number == len(bins):
            bins.append([])
        bins[number].append(example)
        bisect.insort(room, (left - len(example), number))
    return [_joined(rows) for rows in bins]


def _joined(rows: Sequence[Example]) -> Example:
    features = {
        "input_ids": [token for row in rows for token in row.features["input_ids"]],
        "labels": [label for row in rows for label in row.features["labels"]],
        "position_ids": [position for row in rows for position in range(len(row))],
    }
    return Example(features, rows[0].row)
