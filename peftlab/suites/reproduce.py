"""Running a stored result again: the same to the bit, within its interval, or not."""

from __future__ import annotations

import functools
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peftlab.errors import UserError
from peftlab.recipe import Recipe
from peftlab.results.run_result import RunResult
from peftlab.statistics import aggregates
from peftlab.statistics.bootstrap import bootstrap
from peftlab.statistics.intervals import mean_score
from peftlab.suites import gpus, workers
from peftlab.suites.collect import collect
from peftlab.suites.placement import Placement
from peftlab.suites.store import Predictions, Record, Stored, read_record

ALONE = "one process"  # with all of the model


@dataclass(frozen=True)
class Reproduction:
    """What came of it."""

    same: bool  # predictions and scores, to the bit; tensors too where their hashes are kept
    within: bool | None  # the new score in the old one's 95 % interval; None without counts, which give no interval
    told: float
    found: float
    interval: tuple[float, float] | None
    differences: list[str]  # of data, model, code and machine

    @property
    def verdict(self) -> str:
        score = f"{self.found:.6f}, stored {self.told:.6f}"
        if self.same:
            return f"bit-equal: {score}"
        if self.interval is None:
            return f"not bit-equal, and without counts there is no interval: {score}"
        bounds = f"{self.interval[0]:.6f} to {self.interval[1]:.6f}"
        return f"{'within the interval' if self.within else 'NOT reproduced: outside the interval'} {bounds}: {score}"


def reproduce(path: Path, threads: int = 1) -> Reproduction:
    """Run the recipe of a stored result in a temporary folder, in as many processes as then, and compare."""
    workers.prepare(threads)
    stored = read_record(path)
    if stored.record.result is None:
        raise UserError(f"{path}: {stored.record.state}; there is no result to reproduce")
    if (name := stored.record.result.selection) not in stored.record.result.metrics[_split(stored.record.result)]:
        raise UserError(f"{path}: {name} is undefined on its {_split(stored.record.result)} split: nothing to compare")
    predictions = stored.predictions()
    then = stored.record.result.environment
    if then.zero is not None or then.device_map is not None:
        raise UserError(f"{path}: it had {then.placement}, which is not set up here; run its recipe in the same way")
    placement = Placement(processes=then.processes, sharded=then.sharded)
    placement.check(len(gpus.visible()))
    with tempfile.TemporaryDirectory() as folder:
        placement.run(functools.partial(_run, stored.recipe, Path(folder) / "run", threads))
        record, again = collect(Path(folder) / "run")
    return compare(stored, predictions, record, again)


def _run(recipe: Recipe, folder: Path, threads: int) -> None:
    workers.import_everything(threads)
    from peftlab.runs.run import run

    run(recipe, folder)


def compare(stored: Stored, predictions: Predictions, record: Record, again: Predictions) -> Reproduction:
    """The stored result against one just made."""
    told, found = stored.record.result, record.result
    assert told is not None
    assert found is not None
    split = _split(told)
    name = told.selection
    interval = None
    counted = next((counts for counts in predictions.counts.get(split, []) if counts.score == name), None)
    if counted is not None and len(counted.rows) > 1:
        form = aggregates.AGGREGATES[counted.form]
        rows = np.array([counted.rows], dtype=np.float64)
        resampled = bootstrap(rows[..., 0] if form is None else rows, form)
        interval = mean_score(resampled).interval()
    score = found.metrics[split].get(name, math.nan)
    tensors = not stored.record.tensors or stored.record.tensors == record.tensors
    return Reproduction(
        same=found.metrics == told.metrics and predictions.found_in(again) and tensors,
        within=None if interval is None else interval[0] <= score <= interval[1],
        told=told.metrics[split][name],
        found=score,
        interval=interval,
        differences=_differences(stored.record, record),
    )


def _split(result: RunResult) -> str:
    return "test" if "test" in result.metrics else "validation"


def _differences(old: Record, new: Record) -> list[str]:
    a, b = old.result, new.result
    assert a is not None
    assert b is not None
    pairs = {
        "model": (a.model_fingerprint[:12], b.model_fingerprint[:12]),
        "data": (a.data_fingerprint[:12], b.data_fingerprint[:12]),
        "tensors": (_short(old.tensors), _short(new.tensors)) if old.tensors else ("", ""),
        "code": (a.environment.code.commit, b.environment.code.commit),
        "uncommitted changes": (a.environment.code.modified, b.environment.code.modified),
        "processor": (a.environment.hardware.processor, b.environment.hardware.processor),
        "accelerators": (a.environment.hardware.accelerators, b.environment.hardware.accelerators),
        "threads": (a.environment.hardware.threads, b.environment.hardware.threads),
        "placement": (a.environment.placement or ALONE, b.environment.placement or ALONE),
        "precision": (a.environment.precision, b.environment.precision),
        "python": (a.environment.python, b.environment.python),
    }
    names = sorted(a.environment.libraries.keys() | b.environment.libraries.keys())
    for library in names:
        pairs[library] = (a.environment.libraries.get(library), b.environment.libraries.get(library))
    return [f"{what}: {then} then, {now} now" for what, (then, now) in pairs.items() if then != now]


def _short(tensors: dict[str, str]) -> str:
    return ", ".join(f"{name} {sha256[:12]}" for name, sha256 in sorted(tensors.items()))
