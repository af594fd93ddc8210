"""Adopting runs that were started elsewhere into a suite's results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from peftlab.errors import UserError
from peftlab.io.atomic import check_writable
from peftlab.suites.collect import collect, finished_runs
from peftlab.suites.matching import matched_suite
from peftlab.suites.plan import current_plan
from peftlab.suites.scheduler import Say
from peftlab.suites.store import RETRYABLE, Store, Stored


def adopt(folder: Path, runs: Path, say: Say = print) -> int:
    """Store the finished runs anywhere below `runs` that belong to the suite; return their number."""
    suite, store = matched_suite(folder), Store(folder)
    if not runs.is_dir():
        raise UserError(f"--adopt {runs}: no such folder")
    check_writable(store.folder)
    finished = finished_runs(runs)
    adopted = 0
    while True:  # a further trial may determine the learning rate of further cells
        records = store.records()
        plan = current_plan(suite, records)
        new = [
            recipe for recipe in plan.recipes if recipe.digest in finished and not _has_result(records, recipe.digest)
        ]
        if not new:
            others = len(finished.keys() - records.keys())
            say(f"{adopted} adopted; {others} others below {runs} do not belong to this suite")
            return adopted
        for recipe in new:
            record, predictions = collect(finished[recipe.digest][0])
            say(f"adopted {store.write(recipe, record, predictions).name}")
            adopted += 1


def _has_result(records: Mapping[str, Stored], digest: str) -> bool:
    """True if there is a result that stays: a run that failed or was out of memory gives way to one that did not."""
    return digest in records and records[digest].record.state not in RETRYABLE
