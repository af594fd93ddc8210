"""Comparison with results that other papers published."""

from __future__ import annotations

import math
from dataclasses import dataclass

from peftlab.reports.analysis import Analysis
from peftlab.reports.columns import method_title, precision
from peftlab.reports.result_row import ResultRow
from peftlab.suites.suite import Published, Row

HEADER = ("method", "precision", "published", "ours", "tolerance", "agrees", "source")
ROUNDING = 1e-9
"""Slack for binary fractions: 0.967 - 0.964 is greater than 0.003."""
Z = 1.96
"""Standard errors on each side of a 95 % interval of a normal distribution."""


@dataclass(frozen=True)
class PublishedRow:
    """A published result and ours; "" stands for what was not measured."""

    method: str
    precision: str
    value: str
    ours: str
    tolerance: str
    agrees: str
    source: str

    @property
    def cells(self) -> tuple[str, ...]:
        return (self.method, self.precision, self.value, self.ours, self.tolerance, self.agrees, self.source)


def published(analysis: Analysis, task: str | None) -> list[PublishedRow]:
    """Published results of a task, or of the mean over all tasks if `task` is None.

    Ours agrees if it is within the suite's tolerance, or within 1.96 of its own standard errors over seeds if that is
    more.
    """
    return [_compare(analysis, row, task) for row in analysis.suite.published if row.task == task]


def title(task: str | None) -> str:
    return "Published results" if task is not None else "Published means over the tasks"


def _compare(analysis: Analysis, published_row: Published, task: str | None) -> PublishedRow:
    tasks = list(analysis.suite.tasks) if task is None else [task]
    combinations = [Row(name, published_row.method, published_row.quantization) for name in tasks]
    rows = [row for row in analysis.rows if row.combination in combinations]
    means = [row.score.mean for row in rows if row.score is not None]
    ours = sum(means) / len(means) if len(means) == len(tasks) else None
    tolerance = max(published_row.tolerance, Z * math.hypot(*(_standard_error(row) for row in rows)) / len(tasks))
    agrees = "" if ours is None else "yes" if abs(ours - published_row.value) <= tolerance + ROUNDING else "no"
    return PublishedRow(
        method_title(rows[0]),
        precision(rows[0]),
        value=f"{published_row.value:.4f}",
        ours="" if ours is None else f"{ours:.4f}",
        tolerance=f"{tolerance:.4f}",
        agrees=agrees,
        source=published_row.source,
    )


def _standard_error(row: ResultRow) -> float:
    """Standard error of the mean over seeds; 0 with one seed, of which it is unknown."""
    score = row.score
    return 0.0 if score is None or score.std is None else score.std / math.sqrt(score.n)
