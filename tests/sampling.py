"""Covering samples of a grid of test cases: `make test` runs the sample, `make test-all` the whole grid."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import combinations
from typing import TypeVar

import pytest
from _pytest.mark import ParameterSet

Cell = TypeVar("Cell")
Values = tuple[Hashable, ...]


def covering(cells: Sequence[Cell], values: Callable[[Cell], Values], strength: int = 2) -> list[Cell]:
    """The cells, in their order, with which a greedy choice covers every combination of `strength` values.

    `values` gives the coordinates of a cell, one per axis. A combination that no cell has needs no cover, so the grid
    may have holes. Strength 1 covers every value, strength 2 every pair of values (pairwise testing).

    >>> cells = [(x, y, z) for x in "ab" for y in "cd" for z in "ef"]
    >>> covering(cells, tuple)
    [('a', 'c', 'e'), ('a', 'd', 'f'), ('b', 'c', 'f'), ('b', 'd', 'e')]
    >>> covering(cells, tuple, strength=1)
    [('a', 'c', 'e'), ('b', 'd', 'f')]
    """
    parts = [set(combinations(enumerate(values(cell)), strength)) for cell in cells]
    missing = set().union(*parts)
    chosen = set()
    while missing:
        best = max(range(len(cells)), key=lambda index: len(parts[index] & missing))  # the first of equals
        chosen.add(best)
        missing -= parts[best]
    return [cell for index, cell in enumerate(cells) if index in chosen]


def sampled(cells: Sequence[Cell], values: Callable[[Cell], Values], strength: int = 2) -> list[ParameterSet]:
    """All cells as parameters of a test, those outside the covering sample marked `grid`.

    A cell that is a tuple gives several arguments.
    """
    sample = covering(range(len(cells)), lambda index: values(cells[index]), strength)
    return [_parameter(cell, () if index in sample else (pytest.mark.grid,)) for index, cell in enumerate(cells)]


def slow_after(number: int, cells: Sequence[Cell]) -> list[ParameterSet]:
    """All cells as parameters of a test, those after the first `number` marked `slow`.

    A cell that is a tuple gives several arguments.
    """
    return [_parameter(cell, () if index < number else (pytest.mark.slow,)) for index, cell in enumerate(cells)]


def _parameter(cell: object, marks: tuple[pytest.MarkDecorator, ...]) -> ParameterSet:
    return pytest.param(*cell, marks=marks) if isinstance(cell, tuple) else pytest.param(cell, marks=marks)
