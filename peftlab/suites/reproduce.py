"""Reproducing a stored result: bit-equal, within its confidence interval, or not reproduced."""

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

ONE_PROCESS = "one process"


@dataclass(frozen=True)
class Reproduction:
    """Comparison of a stored result with a new run of its recipe."""

    same: bool
    """Predictions and scores are equal to the bit, and so are the tensors if their hashes were stored."""
    within: bool | None
    """The new score is in the 95 % interval of the stored one; None without statistics, which give the interval."""
    stored_score: float
    new_score: float
    interval: tuple[float, float] | None
    """95 % confidence interval of the stored score."""
    differences: list[str]
    """Differences of data, model, code and machine, one line each."""

    @property
    def verdict(self) -> str:
        score = f"{self.new_score:.6f}, stored {self.stored_score:.6f}"
        if self.same:
            return f"bit-equal: {score}"
        if self.interval is None:
            return f"not bit-equal, and without statistics there is no interval: {score}"
        bounds = f"{self.interval[0]:.6f} to {self.interval[1]:.6f}"
        return f"{'within the interval' if self.within else 'NOT reproduced: outside the interval'} {bounds}: {score}"


def reproduce(path: Path, threads: int = 1) -> Reproduction:
    """Run the recipe of a stored result again, in as many processes as then, and compare. Raises UserError."""
    workers.prepare(threads)
    stored = read_record(path)
    if stored.record.result is None:
        raise UserError(f"{path}: {stored.record.state}; there is no result to reproduce")
    if (name := stored.record.result.selection) not in stored.record.result.metrics[_split(stored.record.result)]:
        raise UserError(f"{path}: {name} is undefined on its {_split(stored.record.result)} split: nothing to compare")
    predictions = stored.predictions()
    then = stored.record.result.environment
    if then.zero is not None or then.device_map is not None:
        raise UserError(f"{path}: it ran {then.placement}, which reproduce does not set up; run its recipe that way")
    placement = Placement(processes=then.processes, sharded=then.sharded)
    placement.check(len(gpus.visible()))
    with tempfile.TemporaryDirectory() as folder:
        placement.run(functools.partial(_run, stored.recipe, Path(folder) / "run", threads))
        record, again = collect(Path(folder) / "run")
    return compare(stored, predictions, record, again)


def _run(recipe: Recipe, folder: Path, threads: int) -> None:
    workers.import_everything(threads)
    from peftlab.runs.run import run  # late: on a machine with GPUs nothing may be imported before the fork

    run(recipe, folder)


def compare(stored: Stored, predictions: Predictions, record: Record, again: Predictions) -> Reproduction:
    """Compare a stored result and its predictions with those of a new run."""
    old, new = stored.record.result, record.result
    assert old is not None
    assert new is not None
    split, name = _split(old), old.selection
    interval = _interval(predictions, split, name)
    score = new.metrics[split].get(name, math.nan)
    tensors = not stored.record.tensors or stored.record.tensors == record.tensors
    return Reproduction(
        same=new.metrics == old.metrics and predictions.contained_in(again) and tensors,
        within=None if interval is None else interval[0] <= score <= interval[1],
        stored_score=old.metrics[split][name],
        new_score=score,
        interval=interval,
        differences=_differences(stored.record, record),
    )


def _interval(predictions: Predictions, split: str, name: str) -> tuple[float, float] | None:
    """95 % bootstrap interval of a stored score; None without statistics of more than one example."""
    statistics = next((each for each in predictions.statistics.get(split, []) if each.score == name), None)
    if statistics is None or len(statistics.rows) < 2:
        return None
    aggregate = aggregates.AGGREGATES[statistics.aggregate]
    rows = np.array([statistics.rows], dtype=np.float64)
    resampled = bootstrap(rows[..., 0] if aggregate is None else rows, aggregate)
    return mean_score(resampled).interval()


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
        "placement": (a.environment.placement or ONE_PROCESS, b.environment.placement or ONE_PROCESS),
        "precision": (a.environment.precision, b.environment.precision),
        "attention": (a.environment.attention, b.environment.attention),
        "python": (a.environment.python, b.environment.python),
    }
    names = sorted(a.environment.libraries.keys() | b.environment.libraries.keys())
    for library in names:
        pairs[library] = (a.environment.libraries.get(library), b.environment.libraries.get(library))
    return [f"{what}: {then} then, {now} now" for what, (then, now) in pairs.items() if then != now]


def _short(tensors: dict[str, str]) -> str:
    return ", ".join(f"{name} {sha256[:12]}" for name, sha256 in sorted(tensors.items()))
