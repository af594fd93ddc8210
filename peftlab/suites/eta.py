"""How long a suite will take, from the runs of it that have ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean

from peftlab.recipe import Recipe
from peftlab.suites.plan import Plan
from peftlab.suites.store import Record, Stored
from peftlab.suites.suite import Row, Suite


@dataclass(frozen=True)
class Expected:
    """A combination's runs, trials and cells apart: how many there are, have ended, and what one takes."""

    row: Row
    trial: bool
    total: int
    ended: int
    seconds: float | None  # a run, by the runs that most resemble it; None if nothing has ended
    high_water_bytes: int | None  # the most of its own runs


class EtaEstimator:
    """What is left of a suite."""

    def __init__(self, suite: Suite, plan: Plan, records: Mapping[str, Stored]) -> None:
        self.lines = list(_expected(suite, plan, records))

    @property
    def total(self) -> int:
        return sum(line.total for line in self.lines)

    @property
    def ended(self) -> int:
        return sum(line.ended for line in self.lines)

    def left(self, jobs: int) -> float | None:
        """Seconds, with so many processes at a time; None if nothing can be said."""
        open_lines = [line for line in self.lines if line.total > line.ended]
        if any(line.seconds is None for line in open_lines):
            return None
        return sum((line.total - line.ended) * (line.seconds or 0.0) for line in open_lines) / jobs


def taken(record: Record) -> float | None:
    """Seconds of a run; of one that was brought in from elsewhere its phases' sum."""
    if record.seconds is not None or record.result is None:
        return record.seconds
    cost = record.result.cost
    return cost.load_seconds + cost.train_seconds + cost.evaluate_seconds


def duration(seconds: float | None) -> str:
    """For people.

    >>> [duration(s) for s in (None, 7.4, 130, 7500)]
    ['unknown', '7 s', '2 min 10 s', '2 h 5 min']
    """
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _expected(suite: Suite, plan: Plan, records: Mapping[str, Stored]) -> Iterator[Expected]:
    lines: list[tuple[Row, bool, int, list[Recipe]]] = [
        (row, True, len(search.trials), search.trials) for row, search in plan.searches.items() if search.trials
    ]
    lines += [
        (row, False, 0 if plan.searches[plan.chosen_over[row]].all_trials_failed else len(suite.seeds), recipes)
        for row, recipes in plan.cells.items()
    ]
    ended = [
        (row, trial, [records[recipe.digest].record for recipe in recipes if recipe.digest in records])
        for row, trial, _, recipes in lines
    ]
    for (row, trial, total, _), (_, _, own) in zip(lines, ended, strict=True):
        alike = (  # from the nearest kin to the farthest
            [record for other, sort, found in ended if (other, sort) == (row, trial) for record in found],
            [r for o, _, found in ended if o == row for r in found],
            [r for o, _, found in ended if (o.task, o.method) == (row.task, row.method) for r in found],
            [r for o, _, found in ended if o.task == row.task for r in found],
            [r for _, _, found in ended for r in found],
        )
        times = next((t for kin in alike if (t := [s for r in kin if (s := taken(r)) is not None])), [])
        peaks = [record.high_water_bytes for record in own if record.high_water_bytes is not None]
        yield Expected(row, trial, total, len(own), fmean(times) if times else None, max(peaks, default=None))
