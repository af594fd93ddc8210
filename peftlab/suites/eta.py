"""Estimated time to finish a suite, from the runs that have ended."""

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
    """The trials or the cells of one row."""

    row: Row
    trial: bool
    """True for trials, False for cells."""
    total: int
    """Number of runs."""
    ended: int
    """Runs that have ended."""
    seconds: float | None
    """Expected seconds per run, from the most similar runs that have ended; None if no run has."""
    peak_rss_bytes: int | None
    """Largest peak resident memory of the row's own runs."""


class EtaEstimator:
    """Expected time of the runs that are left."""

    def __init__(self, suite: Suite, plan: Plan, records: Mapping[str, Stored]) -> None:
        self.lines = list(_expected(suite, plan, records))

    @property
    def total(self) -> int:
        return sum(line.total for line in self.lines)

    @property
    def ended(self) -> int:
        return sum(line.ended for line in self.lines)

    def left(self, jobs: int) -> float | None:
        """Seconds left with `jobs` processes at a time; None if no run has ended that tells."""
        open_lines = [line for line in self.lines if line.total > line.ended]
        if any(line.seconds is None for line in open_lines):
            return None
        return sum((line.total - line.ended) * (line.seconds or 0.0) for line in open_lines) / jobs


def run_seconds(record: Record) -> float | None:
    """Wall-clock seconds of a run; of an adopted run, the sum of its phases."""
    if record.seconds is not None or record.result is None:
        return record.seconds
    cost = record.result.cost
    return cost.load_seconds + cost.train_seconds + cost.evaluate_seconds


def duration(seconds: float | None) -> str:
    """The duration with its units.

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
    for (row, trial, total, _), (_, _, runs) in zip(lines, ended, strict=True):
        seconds = _seconds_of_similar(row, trial, ended)
        peaks = [record.peak_rss_bytes for record in runs if record.peak_rss_bytes is not None]
        yield Expected(row, trial, total, len(runs), seconds, max(peaks, default=None))


def _seconds_of_similar(row: Row, trial: bool, ended: list[tuple[Row, bool, list[Record]]]) -> float | None:
    """Mean seconds of the most similar runs that have ended."""
    groups = (  # from the most similar to the least
        [runs for other, other_trial, runs in ended if (other, other_trial) == (row, trial)],
        [runs for other, _, runs in ended if other == row],
        [runs for other, _, runs in ended if (other.task, other.method) == (row.task, row.method)],
        [runs for other, _, runs in ended if other.task == row.task],
        [runs for _, _, runs in ended],
    )
    for group in groups:
        seconds = [run_seconds(record) for runs in group for record in runs]
        if measured := [each for each in seconds if each is not None]:
            return fmean(measured)
    return None
