"""Analysis of a suite: one row for each combination of task, method and quantization, with its statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from peftlab.errors import UserError
from peftlab.profiling.profile import Profile
from peftlab.reports.environments import comparable_times, most_common_environment, with_environments
from peftlab.reports.result_row import ResultRow
from peftlab.reports.significance import reference_row, with_tests
from peftlab.statistics import aggregates
from peftlab.statistics.bootstrap import bootstrap
from peftlab.statistics.intervals import mean_score, summarize
from peftlab.suites.plan import Plan, make_plan
from peftlab.suites.profiles import ProfileStore, StoredProfile, profile_digest
from peftlab.suites.store import Predictions, Store, Stored, validation_scores
from peftlab.suites.suite import Row, Suite
from peftlab.suites.suite_file import load_suite


@dataclass(frozen=True)
class Analysis:
    """A suite, its rows and the environments that its runs used."""

    suite: Suite
    plan: Plan
    rows: list[ResultRow]
    environments: dict[str, str]
    """Most common environment of the runs of each task."""

    def of_task(self, task: str) -> list[ResultRow]:
        return [row for row in self.rows if row.combination.task == task]

    def metric(self, task: str) -> str:
        return self.of_task(task)[0].recipe.task.selection

    def reference(self, task: str) -> ResultRow | None:
        """Row that the other rows of the task are compared with."""
        return reference_row(self.of_task(task), self.suite.reference)

    def constant_baseline(self, task: str) -> float | None:
        """Score of the constant baseline, if a result of the task records it."""
        metric, split = self.metric(task), self.suite.split
        scores = (result.constant_baseline.get(split, {}) for row in self.of_task(task) for result in row.results)
        return next((baseline[metric] for baseline in scores if metric in baseline), None)

    def started(self, task: str) -> bool:
        """True if any combination of the task has a run, a trial or a profile."""
        return any(row.runs or row.trials or row.stored_profile for row in self.of_task(task))

    def profiled(self, task: str) -> bool:
        """True if any combination of the task has a profile, or a record of a failed one."""
        return any(row.stored_profile is not None for row in self.of_task(task))

    def reference_profile(self, row: ResultRow) -> Profile | None:
        """Profile of the reference, if its times are comparable with those of `row`."""
        reference = self.reference(row.combination.task)
        profile, other = row.profile, None if reference is None else reference.profile
        if profile is None or other is None:
            return None
        return other if comparable_times(profile, other) else None


def read_analysis(folder: Path) -> Analysis:
    """Analyze a suite's folder.

    Raises UserError if there is nothing to report: no run, trial or profile, and no published result to compare with.
    """
    analysis = analyze(load_suite(folder), Store(folder).records(), ProfileStore(folder).records())
    if not analysis.suite.published and not any(analysis.started(task) for task in analysis.suite.tasks):
        raise UserError(f"{folder}: no results yet; `peftlab bench {folder}` makes them")
    return analysis


def analyze(
    suite: Suite, records: Mapping[str, Stored], profiles: Mapping[str, StoredProfile] | None = None
) -> Analysis:
    """Statistics of all combinations; records by recipe digest, profiles by profile digest.

    Raises UserError if the results of a task used different data or models.
    """
    plan = make_plan(suite, validation_scores(records))
    all_rows = [_row(suite, plan, combination, records, profiles or {}) for combination in suite.rows()]
    analyzed: list[ResultRow] = []
    environments: dict[str, str] = {}
    for task in suite.tasks:
        rows = [row for row in all_rows if row.combination.task == task]
        runs = list({stored.path: stored for row in rows for stored in (*row.runs, *row.trials)}.values())
        _require_same_data_and_model(task, runs)
        environments[task] = most_common_environment(runs)
        rows = [with_environments(row, environments[task]) for row in rows]
        analyzed += with_tests(suite, [_with_scores(suite, row) for row in rows])
    return Analysis(suite, plan, analyzed, environments)


def _row(
    suite: Suite,
    plan: Plan,
    combination: Row,
    records: Mapping[str, Stored],
    profiles: Mapping[str, StoredProfile],
) -> ResultRow:
    cells = plan.cells.get(combination, [])
    base = suite.recipe(
        combination, learning_rate=suite.base_learning_rate(combination), seed=suite.seeds[0], trial=False
    )
    search = None if combination in plan.refused else plan.searches[plan.chosen_over[combination]]
    return ResultRow(
        combination,
        cells[0] if cells else base,
        seeds=len(suite.seeds),
        runs=[records[cell.digest] for cell in cells if cell.digest in records],
        search=search,
        incompatibility=plan.refused.get(combination),
        trials=[records[trial.digest] for trial in (search.trials if search else []) if trial.digest in records],
        stored_profile=profiles.get(profile_digest(base)),
    )


def _with_scores(suite: Suite, row: ResultRow) -> ResultRow:
    """The row with mean and spread over seeds and, if the predictions hold statistics per example, an estimate."""
    metric, split = row.recipe.task.selection, suite.split
    scored = [
        (stored, stored.record.result.metrics[split][metric])
        for stored in row.runs
        if stored.record.result is not None and metric in stored.record.result.metrics[split]
    ]
    if not scored:
        return row
    predictions = [stored.predictions() for stored, _ in scored]
    degenerate = sum(
        _is_degenerate(row, split, stored, predicted)
        for (stored, _), predicted in zip(scored, predictions, strict=True)
    )
    row = replace(row, score=summarize([score for _, score in scored]), degenerate_runs=degenerate)
    counts = [next((c for c in run.statistics.get(split, []) if c.score == metric), None) for run in predictions]
    available = [c for c in counts if c is not None]
    sizes = {len(c.rows) for c in available}
    if len(available) < len(counts) or len(sizes) > 1 or min(sizes) < 2:
        return row
    name = available[0].aggregate
    aggregate = aggregates.AGGREGATES[name]
    table = aggregates.stacked([c.rows for c in available])
    resampled = bootstrap(table[..., 0] if aggregate is None else table, aggregate)
    for recomputed, (stored, score) in zip(resampled.scores, scored, strict=True):
        if not math.isclose(recomputed, score, rel_tol=1e-9, abs_tol=1e-9):
            raise UserError(f"{stored.path}: {metric} is {score}, but its stored predictions give {recomputed}")
    return replace(row, resampled=resampled, estimate=mean_score(resampled), score_range=aggregates.RANGES[name])


def _is_degenerate(row: ResultRow, split: str, stored: Stored, predictions: Predictions) -> bool:
    """True if a run predicts the same for every example, or scores no better than the constant baseline."""
    result, metric = stored.record.result, row.recipe.task.selection
    assert result is not None
    baseline = result.constant_baseline.get(split, {}).get(metric)
    if baseline is not None and row.sign * result.metrics[split][metric] <= row.sign * baseline:
        return True
    answers = predictions.columns.get(split, {}).get("predicted", [])
    return len(answers) > 1 and all(answer == answers[0] for answer in answers)


def _require_same_data_and_model(task: str, runs: Sequence[Stored]) -> None:
    for noun, key in (("data", "data_fingerprint"), ("model", "model_fingerprint")):
        first: dict[str, Stored] = {}
        for stored in runs:
            if stored.record.result is not None:
                first.setdefault(getattr(stored.record.result, key), stored)
        if len(first) > 1:
            one, other = list(first.values())[:2]
            raise UserError(
                f"{other.path}: its {noun} differs from that of {one.path.name}, both of task {task}: "
                "their results cannot be compared"
            )
