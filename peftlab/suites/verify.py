"""Verify a suite's results: recompute every metric from the stored predictions and the data, without a model.

The data are read and the tasks bound once for all results; several processes share the rest.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftlab import metrics
from peftlab.errors import UserError
from peftlab.results.run_result import RunResult
from peftlab.suites.collect import score_statistics
from peftlab.suites.store import Predictions, ScoreStatistics, Store, Stored
from peftlab.suites.suite_file import suite_file
from peftlab.tasks import Task

TOLERANCE = 1e-9  # of sums in another order
RESULTS_PER_PROCESS = 8  # below it, a further process costs more than it saves


@dataclass(frozen=True)
class Verdict:
    """Outcome for one result. A score that the record or the code lacks is unknown, not wrong."""

    stored: Stored
    wrong: list[str] = field(default_factory=list)
    """One line for each stored value that differs from the recomputed one; empty if all agree."""
    not_recorded: list[str] = field(default_factory=list)
    """Scores that the code computes and the record lacks, as "split name"."""
    not_computed: list[str] = field(default_factory=list)
    """Scores that the record has and the code does not compute, as "split name"."""


@dataclass(frozen=True)
class References:
    """Expected answers of one data set under one task."""

    task: Task
    """Bound to the data."""
    fingerprint: str
    """SHA-256 of the rows."""
    by_split: Mapping[str, list[dict[str, Any]]]
    """Expected answer of each row."""


def verify(folder: Path) -> Iterator[Verdict]:
    """Recompute all metrics and statistics of every finished run. Raises UserError if the data cannot be read."""
    suite_file(folder)  # a misspelled folder inside a suite would be taken for the suite
    finished = [stored for stored in Store(folder).records().values() if stored.record.result is not None]
    references: dict[str, References] = {}
    for stored in finished:
        if (key := _data_key(stored)) not in references:
            references[key] = read_references(stored)
    check = functools.partial(_verdict, references)
    yield from map(check, finished[:1])  # imports what the metrics need, before processes are forked
    processes = min(_cpus(), len(finished) // RESULTS_PER_PROCESS)
    if processes > 1 and sys.platform == "linux":
        yield from _in_processes(check, finished[1:], processes)
    else:
        yield from map(check, finished[1:])


def read_references(stored: Stored) -> References:
    """Read the data of a result and bind its task. Raises UserError."""
    rows = stored.recipe.rows()
    task = stored.recipe.task.from_training(rows.rows["train"]).bind(row for part in rows.rows.values() for row in part)
    scored = {split: part for split, part in rows.rows.items() if split not in ("train", "replay")}
    return References(
        task, rows.fingerprint, {split: [task.reference(row) for row in part] for split, part in scored.items()}
    )


def _data_key(stored: Stored) -> str:
    return stored.recipe.model_dump_json(include={"data", "task", "replay"})


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _verdict(references: Mapping[str, References], stored: Stored) -> Verdict:
    try:
        return check(stored, stored.predictions(), references[_data_key(stored)])
    except UserError as error:
        return Verdict(stored, [str(error)])


_inherited: list[Any] = []
"""Function and arguments for forked processes, which inherit them: the data are too large to be sent to each."""


def _in_processes(check: Callable[[Stored], Verdict], finished: Sequence[Stored], processes: int) -> Iterator[Verdict]:
    _inherited[:] = [check, finished]
    try:
        with ProcessPoolExecutor(processes, multiprocessing.get_context("fork")) as pool:
            yield from pool.map(_check_inherited, range(len(finished)), chunksize=2)
    finally:
        _inherited.clear()


def _check_inherited(number: int) -> Verdict:
    check, finished = _inherited
    verdict: Verdict = check(finished[number])
    return verdict


def check(stored: Stored, predictions: Predictions, references: References) -> Verdict:
    """Compare one result with what its predictions and the data give."""
    result = stored.record.result
    assert result is not None
    if references.fingerprint != result.data_fingerprint:
        now, then = references.fingerprint[:12], result.data_fingerprint[:12]
        return Verdict(stored, [f"its data were different: fingerprint {then}, now {now}"])
    if predictions.columns.keys() != result.metrics.keys():
        return Verdict(
            stored, [f"predictions of {', '.join(predictions.columns)}, but scores of {', '.join(result.metrics)}"]
        )
    if predictions.statistics.keys() != result.metrics.keys():
        splits = ", ".join(predictions.statistics) or "nothing"
        return Verdict(stored, [f"statistics of {splits}, but scores of {', '.join(result.metrics)}"])
    verdict = Verdict(stored)
    for split in predictions.columns:
        _check_split(verdict, result, predictions, references, split)
    return verdict


def _check_split(
    verdict: Verdict, result: RunResult, predictions: Predictions, references: References, split: str
) -> None:
    """Add what differs and what is unknown in one split to the verdict."""
    task, columns, recorded = references.task, predictions.columns[split], result.metrics[split]
    computable = []
    for name in task.metrics:
        missing = [key for key in metrics.prediction_keys([name]) if key not in columns]
        if not missing:
            computable.append(name)
        elif any(_is_score_of(score, [name]) for score in recorded):
            verdict.wrong.append(f"{split}: no {', '.join(missing)} among its predictions")
        else:
            verdict.not_recorded.append(f"{split} {metrics.METRICS[name].scores[0]}")
    if not computable:
        return
    expected = references.by_split[split]
    if any(len(column) != len(expected) for column in columns.values()):
        verdict.wrong.append(f"{split}: its number of predictions is not {len(expected)}, the number of examples")
        return
    records = [{**answer, **{key: column[i] for key, column in columns.items()}} for i, answer in enumerate(expected)]
    try:
        scores = metrics.score(computable, task.to_metric_inputs(records))
        statistics = score_statistics(task, records, computable)
    except (KeyError, TypeError, ValueError) as error:  # values that no run would have left
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        verdict.wrong.append(f"{split}: its predictions cannot be scored: {reason}")
        return
    _compare_scores(verdict, split, recorded, scores, computable)
    _compare_statistics(verdict, split, predictions.statistics[split], statistics, computable)


def _compare_scores(
    verdict: Verdict, split: str, recorded: Mapping[str, float], scores: Mapping[str, float], names: Iterable[str]
) -> None:
    for score in sorted(recorded):
        old, new = recorded[score], scores.get(score)
        if new is None and not _is_score_of(score, names):
            if not _is_score_of(score, verdict.stored.recipe.task.metrics):  # or else its missing column was reported
                verdict.not_computed.append(f"{split} {score}")
        elif new is None or not math.isclose(old, new, abs_tol=TOLERANCE):
            verdict.wrong.append(f"{split} {score}: recorded {old}, its predictions give {new}")
    verdict.not_recorded.extend(f"{split} {score}" for score in sorted(scores.keys() - recorded.keys()))


def _compare_statistics(
    verdict: Verdict,
    split: str,
    recorded: Iterable[ScoreStatistics],
    computed: Iterable[ScoreStatistics],
    names: Iterable[str],
) -> None:
    by_score = {statistics.score: statistics for statistics in computed}
    if any(
        by_score.get(statistics.score) != statistics for statistics in recorded if _is_score_of(statistics.score, names)
    ):
        verdict.wrong.append(f"{split}: its statistics differ from those of its predictions")


def _is_score_of(score: str, names: Iterable[str]) -> bool:
    """True if one of the metrics declares the score.

    >>> _is_score_of("entity_f1/LOC", ["entity_f1"]), _is_score_of("bleu", ["entity_f1"])
    (True, False)
    """
    patterns = (pattern for name in names for pattern in metrics.METRICS[name].scores)
    return any(
        score.startswith(pattern.removesuffix("*")) if pattern.endswith("*") else score == pattern
        for pattern in patterns
    )
