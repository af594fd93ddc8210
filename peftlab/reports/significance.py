"""Tests between the rows of a task: each against the reference, and which rows are tied for best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from peftlab.reports.result_row import ResultRow
from peftlab.statistics.hypothesis_tests import Comparison, compare, equivalence, holm, noninferiority, tied_for_best
from peftlab.statistics.power import minimum_detectable_difference
from peftlab.suites.suite import Row, Suite


def reference_row(rows: Sequence[ResultRow], method: str) -> ResultRow | None:
    """Row of the reference method, the unquantized one if it is among the rows."""
    candidates = [row for row in rows if row.combination.method == method]
    return min(candidates, key=lambda row: row.recipe.quantization.quantizes, default=None)


def with_tests(suite: Suite, rows: Sequence[ResultRow]) -> list[ResultRow]:
    """The rows of one task, compared with the reference and with the best."""
    reference = reference_row(rows, suite.reference)
    comparisons: dict[Row, Comparison] = {}
    for row in rows:
        if reference is not None and row is not reference and _comparable(row, reference):
            assert row.resampled is not None
            assert reference.resampled is not None
            comparisons[row.combination] = compare(row.resampled, reference.resampled)
    higher_is_better = all(row.sign > 0 for row in rows)
    differences = {combination: comparison.difference for combination, comparison in comparisons.items()}
    p = _holm({combination: comparison.p for combination, comparison in comparisons.items()})
    p_noninferiority = _holm(
        {
            combination: noninferiority(difference, suite.margin, higher_is_better=higher_is_better)
            for combination, difference in differences.items()
        }
    )
    p_equivalence = _holm(
        {combination: equivalence(difference, suite.margin) for combination, difference in differences.items()}
    )
    tied = _tied_for_best(rows, higher_is_better=higher_is_better)
    return [
        replace(
            row,
            comparison=comparisons.get(row.combination),
            p=p.get(row.combination),
            p_noninferiority=p_noninferiority.get(row.combination),
            p_equivalence=p_equivalence.get(row.combination),
            tied_for_best=tied.get(row.combination, False),
        )
        for row in rows
    ]


def _tied_for_best(rows: Sequence[ResultRow], *, higher_is_better: bool) -> dict[Row, bool]:
    """Rows with one seed are left out if others have several: their variance between seeds is unknown."""
    several = any(row.score is not None and row.score.n > 1 for row in rows)
    ranked = [
        (row.combination, row.resampled)
        for row in rows
        if row.resampled is not None and (row.resampled.scores.size > 1) == several
    ]
    if not ranked:
        return {}
    tied = tied_for_best([resampled for _, resampled in ranked], higher_is_better=higher_is_better)
    return dict(zip([combination for combination, _ in ranked], tied, strict=True))


def _comparable(row: ResultRow, reference: ResultRow) -> bool:
    """True if both have statistics of the same number of examples, and both several seeds or both one."""
    a, b = row.resampled, reference.resampled
    if a is None or b is None:
        return False
    return (len(a.scores) > 1) == (len(b.scores) > 1) and a.counts.shape[1] == b.counts.shape[1]


def _holm(p_values: Mapping[Row, float]) -> dict[Row, float]:
    if not p_values:
        return {}
    return dict(zip(p_values, holm(list(p_values.values())), strict=True))


@dataclass(frozen=True)
class Power:
    """Differences that the tests of a task detect with probability 0.8, at the strictest step of Holm's correction."""

    smallest: float
    """Detectable difference in the row with the least variance."""
    largest: float
    """Detectable difference in the row with the most variance."""
    margin: float
    """Margin at which a method equal to the reference is shown to be non-inferior, in the row with least variance."""


def power(rows: Sequence[ResultRow]) -> Power | None:
    """Power of the comparisons of one task; None if there are none.

    A detectable difference can exceed what the metric allows: then no difference is detectable.
    """
    differences = [row.comparison.difference for row in rows if row.comparison is not None]
    uncertain = [difference for difference in differences if difference.standard_error]
    if not uncertain:
        return None
    level = 0.05 / len(differences)
    two_sided = [minimum_detectable_difference(difference, level=level) for difference in uncertain]
    one_sided = [minimum_detectable_difference(difference, level=2 * level) for difference in uncertain]
    return Power(min(two_sided), max(two_sided), min(one_sided))
