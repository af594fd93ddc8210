"""Which rows go where: splits and samples drawn by a seeded hash of the content, not by position.

A row's draw depends on the row (or its group) and the seed alone, so that order and other rows change nothing. Under
`stratify` each class is cut by itself: rows that are added move the border of their class by their share, and of the
rest only rows at that border move.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from peftlab.data.examples import Row
from peftlab.errors import UserError, nearest, printable


def cut(
    rows: Sequence[Row], shares: Mapping[str, float], *, seed: int, group: str | None, stratify: str | None
) -> dict[str, list[int]]:
    """Positions in `rows` for each split of `shares`, and for "train" the rest; in order.

    `group` and `stratify` name columns: equal values of the first stay together, each value of the second is shared
    out alike. Rows that are the same all over stay together too.
    """
    units: dict[str, list[int]] = defaultdict(list)
    for position, row in enumerate(rows):
        units[canonical(row.fields) if group is None else canonical(_value(row, group, "group"))].append(position)
    places: dict[str, list[int]] = {split: [] for split in (*shares, "train")}
    if stratify is None:
        for unit, members in units.items():
            places[_by_draw(draw(unit, seed), shares)] += members
    else:
        strata = values(rows, stratify)
        classes: dict[str, list[str]] = defaultdict(list)
        for unit, members in units.items():
            own = Counter(sorted(strata[member] for member in members))
            classes[own.most_common(1)[0][0]].append(unit)  # a group of several classes counts as its commonest
        for name, members_of in classes.items():
            ordered = sorted(members_of, key=lambda unit: (draw(unit, seed), unit))
            sizes = [len(units[unit]) for unit in ordered]
            for unit, split in zip(ordered, _share_out(name, sizes, shares, seed), strict=True):
                places[split] += units[unit]
    return {split: sorted(positions) for split, positions in places.items()}


def sample(rows: Sequence[Row], count: int, *, seed: int, strata: Sequence[str] | None = None) -> list[int]:
    """Positions of `count` rows, in order; with `strata`, a class for each row, of each class its share.

    A smaller sample is part of a larger one.
    """
    draws = [draw(canonical(row.fields), seed) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (draws[i], i))
    if strata is not None:
        classes: dict[str, list[int]] = defaultdict(list)
        for i in order:
            classes[strata[i]].append(i)
        rank = {i: (place + 0.5) / len(members) for members in classes.values() for place, i in enumerate(members)}
        order.sort(key=lambda i: (rank[i], draws[i], i))
    return sorted(order[:count])


def values(rows: Sequence[Row], stratify: str) -> list[str]:
    """The class of each row. Raises UserError if there are too many for classes."""
    found = [canonical(_value(row, stratify, "stratify")) for row in rows]
    if len(set(found)) > max(1, len(found) // 2):
        raise UserError(
            f"data.stratify: {stratify!r} has {len(set(found))} different values in {len(found)} rows; classes have few"
        )
    return found


def draw(key: str, seed: int) -> float:
    """A number in [0, 1) that depends on nothing but key and seed."""
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:8], "big") / 2**64


def canonical(value: object) -> str:
    """One text for equal values.

    >>> canonical({"b": 1, "a": ["x"]})
    '{"a": ["x"], "b": 1}'
    """
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def _by_draw(number: float, shares: Mapping[str, float]) -> str:
    for split, share in shares.items():
        if number < share:
            return split
        number -= share
    return "train"


def _share_out(name: str, sizes: Sequence[int], shares: Mapping[str, float], seed: int) -> list[str]:
    """A split for each unit of a class, in turn, until the split has its share of the class.

    What is left of a row is rounded by a draw, so that many small classes still give a split its share.
    """
    places: list[str] = []
    for split, share in shares.items():
        target = math.floor(sum(sizes) * share + draw(f"{split} {name}", seed))
        taken = 0.0
        while len(places) < len(sizes) and taken + sizes[len(places)] / 2 <= target:
            taken += sizes[len(places)]
            places.append(split)
    return places + ["train"] * (len(sizes) - len(places))


def _value(row: Row, column: str, option: str) -> object:
    if column not in row.fields:
        hint = nearest(column, row.fields) or f"; it has: {', '.join(printable(str(name)) for name in row.fields)}"
        raise UserError(f"{row.where}: no column {column!r} for data.{option}{hint}")
    return row.fields[column]
