"""`peftlab bench --dry-run`: what a suite has left to run, how long it takes and how much memory."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from peftlab.errors import UserError

if TYPE_CHECKING:
    from peftlab.suites.eta import Expected
    from peftlab.suites.suite import Row, Suite

MIB = 2**20


def print_plan(folder: Path, jobs: int) -> None:
    """Print one line per row of the suite, and the time that `jobs` processes need for the rest."""
    from peftlab.suites.eta import EtaEstimator, duration
    from peftlab.suites.matching import matched_suite
    from peftlab.suites.plan import current_plan
    from peftlab.suites.store import Store

    suite, records = matched_suite(folder), Store(folder).records()
    plan = current_plan(suite, records)
    eta = EtaEstimator(suite, plan, records)
    measured = {line.row for line in eta.lines if line.peak_rss_bytes is not None}
    predicted = _predicted_peaks(suite, [row for row in plan.cells if row not in measured])
    width = max((len(line.row.name) for line in eta.lines), default=4)
    print(f"{'row':<{width}}  {'runs':<7}{'done':<8}{'per run':<16}peak memory")
    for line in eta.lines:
        print(
            f"{line.row.name:<{width}}  {'trials' if line.trial else 'cells':<7}{f'{line.ended}/{line.total}':<8}"
            f"{duration(line.seconds):<16}{_peak(line, predicted)}"
        )
    for row, reason in plan.refused.items():
        print(f"{row.name:<{width}}  unsupported: {reason}")
    if predicted:
        print("predicted: tensors of a training step, from their shapes; otherwise the measured peak of the process")
    left = eta.left(jobs)
    print(
        f"{eta.ended} of {eta.total} done; the rest takes {'an unknown time' if left is None else duration(left)} "
        f"with {jobs} {'process' if jobs == 1 else 'processes'} at a time"
    )


def _peak(line: Expected, predicted: Mapping[Row, int]) -> str:
    if line.row in predicted:
        return f"{predicted[line.row] / MIB:.0f} MiB predicted"
    return "-" if line.peak_rss_bytes is None else f"{line.peak_rss_bytes / MIB:.0f} MiB"


def _predicted_peaks(suite: Suite, rows: Sequence[Row]) -> dict[Row, int]:
    """Bytes of each row's training step, where the shapes of its model are known. Imports torch if there are rows."""
    if not rows or suite.placement.sharded:  # shards are not predicted
        return {}
    print(f"predicting the memory of {len(rows)} rows that were never run; this takes a moment", file=sys.stderr)
    from peftlab.profiling.estimate import estimate_memory

    peaks = {}
    for row in rows:
        recipe = suite.example(row)
        with suppress(UserError):  # a row that cannot be predicted has a dash
            memory = estimate_memory(
                recipe, limit=None, devices=suite.placement.processes, examples=None, length=None
            ).memory
            if memory is not None:
                peaks[row] = memory.peak
    return peaks
