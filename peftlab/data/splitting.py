"""Splits and samples, drawn by a seeded hash of a row's content, not by its position.

The draw of a row (or of its group) depends on its content and the seed alone, so that neither order nor other rows
change it. Stratified, each class is split by itself: added rows move the boundaries within their class by their
fraction, and only rows at these boundaries change their split.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from peftlab.data.examples import Row
from peftlab.errors import UserError, nearest, printable


def split_rows(
    rows: Sequence[Row], fractions: Mapping[str, float], *, seed: int, group: str | None, stratify: str | None
) -> dict[str, list[int]]:
    """Sorted positions in `rows` for each split of `fractions`, and the remaining ones for "train".

    `group` and `stratify` name columns: rows with the same value of the first stay in one split, each value of the
    second is distributed by the same fractions. Identical rows stay in one split too.
    """
    units: dict[str, list[int]] = defaultdict(list)
    for position, row in enumerate(rows):
        units[canonical(row.fields) if group is None else canonical(_value(row, group, "group"))].append(position)
    positions: dict[str, list[int]] = {split: [] for split in (*fractions, "train")}
    if stratify is None:
        for unit, members in units.items():
            positions[_split_of(hash_fraction(unit, seed), fractions)] += members
    else:
        strata = classes(rows, stratify)
        units_of_class: dict[str, list[str]] = defaultdict(list)
        for unit, members in units.items():
            counts = Counter(sorted(strata[member] for member in members))
            units_of_class[counts.most_common(1)[0][0]].append(unit)  # a mixed group counts as its most frequent class
        for name, names_of_units in units_of_class.items():
            ordered = sorted(names_of_units, key=lambda unit: (hash_fraction(unit, seed), unit))
            sizes = [len(units[unit]) for unit in ordered]
            for unit, split in zip(ordered, _distribute(name, sizes, fractions, seed), strict=True):
                positions[split] += units[unit]
    return {split: sorted(members) for split, members in positions.items()}


def sample(rows: Sequence[Row], count: int, *, seed: int, strata: Sequence[str] | None = None) -> list[int]:
    """Sorted positions of `count` rows. With `strata`, a class for each row, every class keeps its fraction.

    A smaller sample is a subset of a larger one.
    """
    draws = [hash_fraction(canonical(row.fields), seed) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (draws[i], i))
    if strata is not None:
        members_of_class: dict[str, list[int]] = defaultdict(list)
        for i in order:
            members_of_class[strata[i]].append(i)
        rank = {i: (k + 0.5) / len(members) for members in members_of_class.values() for k, i in enumerate(members)}
        order.sort(key=lambda i: (rank[i], draws[i], i))
    return sorted(order[:count])


def classes(rows: Sequence[Row], stratify: str) -> list[str]:
    """The class of each row, by column `stratify`. Raises UserError if more than half of the values differ."""
    names = [canonical(_value(row, stratify, "stratify")) for row in rows]
    if len(set(names)) > max(1, len(names) // 2):
        raise UserError(
            f"data.stratify: {stratify!r} has {len(set(names))} different values in {len(names)} rows; classes have few"
        )
    return names


def hash_fraction(key: str, seed: int) -> float:
    """A number in [0, 1) that depends on key and seed alone."""
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:8], "big") / 2**64


def canonical(value: object) -> str:
    """One text for equal values.

    >>> canonical({"b": 1, "a": ["x"]})
    '{"a": ["x"], "b": 1}'
    """
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def _split_of(draw: float, fractions: Mapping[str, float]) -> str:
    for split, fraction in fractions.items():
        if draw < fraction:
            return split
        draw -= fraction
    return "train"


def _distribute(name: str, sizes: Sequence[int], fractions: Mapping[str, float], seed: int) -> list[str]:
    """The split of each unit of a class: units are taken in order until a split has its fraction of the class.

    A fraction of a row is rounded by a draw, so that a split gets its fraction of many small classes too.
    """
    splits: list[str] = []
    for split, fraction in fractions.items():
        target = int(sum(sizes) * fraction + hash_fraction(f"{split} {name}", seed))
        taken = 0.0
        while len(splits) < len(sizes) and taken + sizes[len(splits)] / 2 <= target:
            taken += sizes[len(splits)]
            splits.append(split)
    return splits + ["train"] * (len(sizes) - len(splits))


def _value(row: Row, column: str, option: str) -> object:
    if column not in row.fields:
        hint = nearest(column, row.fields) or f"; it has: {', '.join(printable(str(name)) for name in row.fields)}"
        raise UserError(f"{row.where}: no column {column!r} for data.{option}{hint}")
    return row.fields[column]
