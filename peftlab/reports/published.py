"""Rows of other papers beside a suite's own."""

from __future__ import annotations

import math
from dataclasses import dataclass

from peftlab.reports.analysis import Analysis, Line
from peftlab.reports.columns import title
from peftlab.suites.suite import Published, Row

HEADS = ("method", "base", "published", "ours", "tolerance", "agrees", "source")
ROUNDING = 1e-9  # of decimal fractions: 0.967 - 0.964 is more than 0.003
Z = 1.96  # standard errors: 95 % of a normal distribution


@dataclass(frozen=True)
class PublishedRow:
    """A published row and what this suite makes of it; "" is what was not measured."""

    method: str
    base: str
    value: str
    ours: str
    tolerance: str
    agrees: str
    source: str

    @property
    def cells(self) -> tuple[str, ...]:
        return (self.method, self.base, self.value, self.ours, self.tolerance, self.agrees, self.source)


def published(findings: Analysis, task: str | None) -> list[PublishedRow]:
    """Those of a task, or without one the means over all tasks.

    Ours agrees if it is within the tolerance that the suite gives, or 1.96 of its own standard errors over seeds if
    these are more.
    """
    return [_beside(findings, row, task) for row in findings.suite.published if row.task == task]


def heading(task: str | None) -> str:
    return "Published" if task is not None else "Published means over the tasks"


def _beside(findings: Analysis, row: Published, task: str | None) -> PublishedRow:
    tasks = list(findings.suite.tasks) if task is None else [task]
    alike = [Row(name, row.method, row.quantization) for name in tasks]
    lines = [line for line in findings.lines if line.row in alike]
    means = [line.score.mean for line in lines if line.score is not None]
    ours = sum(means) / len(means) if len(means) == len(tasks) else None
    tolerance = max(row.tolerance, Z * math.hypot(*(_error(line) for line in lines)) / len(tasks))
    method, base = title(lines[0])
    return PublishedRow(
        method,
        base,
        value=f"{row.value:.4f}",
        ours="" if ours is None else f"{ours:.4f}",
        tolerance=f"{tolerance:.4f}",
        agrees="" if ours is None else "yes" if abs(ours - row.value) <= tolerance + ROUNDING else "no",
        source=row.source,
    )


def _error(line: Line) -> float:
    """The standard error over seeds; with one seed nothing is known of it."""
    score = line.score
    return 0.0 if score is None or score.std is None else score.std / math.sqrt(score.n)
