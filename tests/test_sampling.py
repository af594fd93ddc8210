"""The sample that `make test` runs covers what it claims to."""

from itertools import combinations

import pytest

from peftlab.methods import METHODS
from tests.contract.bases import FAMILIES, PACKED, PRECISIONS, SUPPORTED, Combination, coordinates
from tests.sampling import covering, sampled, slow_after


def pairs(cells: list[Combination]) -> set[object]:
    return {pair for cell in cells for pair in combinations(enumerate(coordinates(cell)), 2)}


def test_the_contract_sample_covers_every_pair_of_the_grid() -> None:
    sample = covering(SUPPORTED, coordinates)
    assert pairs(sample) == pairs(SUPPORTED)
    assert len(sample) < len(SUPPORTED) / 2


def test_the_contract_sample_covers_every_method_setting_quantization_and_family() -> None:
    sample = covering(SUPPORTED, coordinates, strength=1)
    settings = {(kind, number) for kind, method in METHODS.items() for number in range(len(method.test_settings))}
    assert {(cell.kind, cell.sample) for cell in sample} == settings
    assert {cell.family for cell in sample} == set(FAMILIES)
    assert {cell.precision for cell in sample} == {*PRECISIONS, *PACKED}


def test_cells_outside_the_sample_are_marked_grid() -> None:
    cells = [(letter, number) for letter in "ab" for number in (1, 2)]
    sample = covering(cells, tuple, strength=1)
    assert len(sample) == 2
    for cell, parameter in zip(cells, sampled(cells, tuple, strength=1), strict=True):
        assert parameter.values == cell
        assert parameter.marks == (() if cell in sample else (pytest.mark.grid,))


def test_cells_after_the_first_are_marked_slow() -> None:
    assert [parameter.marks for parameter in slow_after(1, "ab")] == [(), (pytest.mark.slow,)]
