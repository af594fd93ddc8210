"""What a suite's results say: a line for each combination, with what the statistics make of its seeds and examples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from peftlab.errors import UserError
from peftlab.profiling.profile import Profile
from peftlab.recipe import Recipe
from peftlab.results.run_result import Environment, RunResult
from peftlab.statistics import aggregates
from peftlab.statistics.bootstrap import Resampled, bootstrap
from peftlab.statistics.hypothesis_tests import Comparison, compare, equivalence, holm, noninferiority, tied_for_best
from peftlab.statistics.intervals import Estimate, Summary, mean_score, summarize
from peftlab.statistics.power import minimum_detectable_difference
from peftlab.suites.plan import Plan, Search, make_plan
from peftlab.suites.profiles import StoredProfile, profile_digest
from peftlab.suites.store import Predictions, Stored, validation_scores
from peftlab.suites.suite import Row, Suite


@dataclass(frozen=True)
class Line:
    """A combination of task, method and quantisation."""

    row: Row
    recipe: Recipe  # of one of its runs; of no run yet, with the middle learning rate
    wanted: int  # seeds
    ended: list[Stored]  # by seed
    search: Search | None  # None if validation refuses the combination
    refused: str | None  # why it does
    score: Summary | None = None
    resampled: Resampled | None = None  # None without counts: then of the seeds alone something can be said
    estimate: Estimate | None = None
    bounds: tuple[float, float] = (-math.inf, math.inf)  # of the metric
    comparison: Comparison | None = None  # to the reference
    blank: int = 0  # runs that learnt nothing: they answer always the same, or score no more than that would
    p: float | None = None  # of the difference, Holm over the task's lines
    p_no_worse: float | None = None  # of "no worse than the reference by the margin", likewise
    p_equivalent: float | None = None  # of "within the margin of the reference, either way", likewise
    tied: bool = False  # with the best
    trials: list[Stored] = field(default_factory=list)  # that have ended, of those that choose its learning rate
    marks: tuple[str, ...] = ()  # how its runs differ from the others' in what they ran on
    measured: StoredProfile | None = None  # None as long as it has not been
    measured_elsewhere: str | None = None  # what it was measured on, if the runs ran on something else

    @property
    def sign(self) -> int:
        """-1 where a smaller score is better."""
        return -1 if self.recipe.task.lower_is_better else 1

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of the mean score, 95 %, cut at the metric's bounds, which changes nothing of what it covers."""
        if self.estimate is None or not self.estimate.standard_error:  # nothing varied: nothing is known of chance
            return None
        low, high = self.estimate.interval()
        return max(low, self.bounds[0]), min(high, self.bounds[1])

    @property
    def gap(self) -> tuple[float, float] | None:
        """The same of the difference to the reference."""
        if self.comparison is None:
            return None
        low, high = self.comparison.difference.interval()
        return max(low, -self.widest), min(high, self.widest)

    @property
    def widest(self) -> float:
        """The largest difference that two scores of the metric can have."""
        return self.bounds[1] - self.bounds[0]

    @property
    def all_trials_failed(self) -> bool:
        """No learning rate gave a score, so that it will have no runs."""
        return self.search is not None and self.search.all_trials_failed

    @property
    def results(self) -> list[RunResult]:
        return [stored.record.result for stored in self.ended if stored.record.result is not None]

    @property
    def trial_results(self) -> list[RunResult]:
        """Of those of the trials that are over this very base."""
        own = [stored.record.result for stored in self.trials if stored.recipe.quantization == self.recipe.quantization]
        return [result for result in own if result is not None]

    @property
    def states(self) -> Counter[str]:
        """How many runs ended how."""
        return Counter(stored.record.state for stored in self.ended)

    @property
    def ledger(self) -> Profile | None:
        """What a training step of it takes."""
        return None if self.measured is None else self.measured.record.profile

    @property
    def high_water_bytes(self) -> float | None:
        """The median of those that were measured."""
        measured = [stored.record.high_water_bytes for stored in self.ended if stored.record.result is not None]
        known = [peak for peak in measured if peak is not None]
        return median(known) if known else None


@dataclass(frozen=True)
class Analysis:
    """All of a suite."""

    suite: Suite
    plan: Plan
    lines: list[Line]
    common: dict[str, str]  # task: what most of its runs ran on

    def of_task(self, task: str) -> list[Line]:
        return [line for line in self.lines if line.row.task == task]

    def metric(self, task: str) -> str:
        return next(line for line in self.lines if line.row.task == task).recipe.task.selection

    def reference(self, task: str) -> Line | None:
        """What the task's other lines are compared with: the reference, unquantised if it is among them."""
        return _reference(self.of_task(task), self.suite.reference)

    def floor(self, task: str) -> float | None:
        """What one answer for all examples scores, train's mean or most frequent, if any of the results says it."""
        found = (
            result.constant_baseline.get(self.suite.split, {}) for line in self.of_task(task) for result in line.results
        )
        return next((floor[self.metric(task)] for floor in found if self.metric(task) in floor), None)

    def begun(self, task: str) -> bool:
        """Whether anything of the task was run, tried or measured."""
        return any(line.ended or line.trials or line.measured for line in self.of_task(task))

    def measured(self, task: str) -> bool:
        """Whether any of the task's lines was, or was tried to be."""
        return any(line.measured is not None for line in self.of_task(task))

    def reference_ledger(self, line: Line) -> Profile | None:
        """That of the reference, if a step of `line` was timed on the same batch and machine."""
        reference = self.reference(line.row.task)
        one, other = line.ledger, None if reference is None else reference.ledger
        if one is None or other is None:
            return None
        return other if _timed_alike(one) == _timed_alike(other) else None


def analyze(
    suite: Suite, records: Mapping[str, Stored], ledgers: Mapping[str, StoredProfile] | None = None
) -> Analysis:
    """Raises UserError if the results are of different data or models under one name."""
    plan = make_plan(suite, validation_scores(records))
    lines = [_line(suite, plan, row, records, ledgers or {}) for row in suite.rows()]
    judged: list[Line] = []
    common: dict[str, str] = {}
    for task in suite.tasks:
        of_task = [line for line in lines if line.row.task == task]
        used = {stored.path: stored for line in of_task for stored in (*line.ended, *line.trials)}
        _refuse_mixture(task, list(used.values()))
        common[task] = _most_common(list(used.values()))
        marked = [_marked(line, common[task]) for line in of_task]
        judged += _judge(suite, [_measure(suite, line) for line in marked])
    return Analysis(suite, plan, judged, common)


def _line(
    suite: Suite, plan: Plan, row: Row, records: Mapping[str, Stored], ledgers: Mapping[str, StoredProfile]
) -> Line:
    cells = plan.cells.get(row, [])
    middle = suite.recipe(row, learning_rate=suite.base_learning_rate(row), seed=suite.seeds[0], trial=False)
    search = None if row in plan.refused else plan.searches[plan.chosen_over[row]]
    return Line(
        row,
        cells[0] if cells else middle,
        wanted=len(suite.seeds),
        ended=[records[cell.digest] for cell in cells if cell.digest in records],
        search=search,
        refused=plan.refused.get(row),
        trials=[records[trial.digest] for trial in (search.trials if search else []) if trial.digest in records],
        measured=ledgers.get(profile_digest(middle)),
    )


def _measure(suite: Suite, line: Line) -> Line:
    """Mean and spread over seeds, and if there are counts what examples add."""
    metric = line.recipe.task.selection
    done = [
        stored
        for stored in line.ended
        if stored.record.result is not None and metric in stored.record.result.metrics[suite.split]
    ]
    scores = [s.record.result.metrics[suite.split][metric] for s in done if s.record.result is not None]
    if not scores:
        return line
    predictions = [stored.predictions() for stored in done]
    score = summarize(scores)
    line = replace(line, blank=sum(_is_blank(line, suite.split, *run) for run in zip(done, predictions, strict=True)))
    counts = [next((c for c in run.counts.get(suite.split, []) if c.score == metric), None) for run in predictions]
    known = [c for c in counts if c is not None]
    sizes = {len(c.rows) for c in known}
    if len(known) < len(counts) or len(sizes) > 1 or min(sizes) < 2:
        return replace(line, score=score)
    form = aggregates.AGGREGATES[known[0].form]
    rows = aggregates.stacked([c.rows for c in known])
    resampled = bootstrap(rows[..., 0] if form is None else rows, form)
    for own, stored in zip(resampled.scores, done, strict=True):
        result = stored.record.result
        assert result is not None
        told = result.metrics[suite.split][metric]
        if not math.isclose(own, told, rel_tol=1e-9, abs_tol=1e-9):
            raise UserError(f"{stored.path}: {metric} is {told}, but by its predictions' counts {own}")
    estimate = mean_score(resampled)
    return replace(line, score=score, resampled=resampled, estimate=estimate, bounds=aggregates.RANGES[known[0].form])


def _is_blank(line: Line, split: str, stored: Stored, predictions: Predictions) -> bool:
    """Whether a run answers each example alike, or scores no more than one answer for all would."""
    result, metric = stored.record.result, line.recipe.task.selection
    assert result is not None
    floor = result.constant_baseline.get(split, {}).get(metric)
    if floor is not None and line.sign * result.metrics[split][metric] <= line.sign * floor:
        return True
    answers = predictions.kept.get(split, {}).get("predicted", [])
    return len(answers) > 1 and all(answer == answers[0] for answer in answers)


def _reference(lines: Sequence[Line], method: str) -> Line | None:
    found = [line for line in lines if line.row.method == method]
    return min(found, key=lambda line: line.recipe.quantization.quantizes, default=None)


def _judge(suite: Suite, lines: list[Line]) -> list[Line]:
    """Compare a task's lines with the reference and with the best."""
    reference = _reference(lines, suite.reference)
    compared: dict[Row, Comparison] = {}
    for line in lines:
        if reference is not None and line is not reference and _comparable(line, reference):
            assert line.resampled is not None
            assert reference.resampled is not None
            compared[line.row] = compare(line.resampled, reference.resampled)
    p = _holm({row: comparison.p for row, comparison in compared.items()})
    larger = all(line.sign > 0 for line in lines)  # is better
    no_worse = _holm(
        {row: noninferiority(c.difference, suite.margin, higher_is_better=larger) for row, c in compared.items()}
    )
    equivalent = _holm({row: equivalence(c.difference, suite.margin) for row, c in compared.items()})
    several = any(line.score is not None and line.score.n > 1 for line in lines)
    ranked = [line for line in lines if line.resampled is not None and (line.resampled.scores.size > 1) == several]
    resampled = [line.resampled for line in ranked if line.resampled is not None]
    best = tied_for_best(resampled, higher_is_better=larger) if ranked else []
    tied = dict(zip([line.row for line in ranked], best, strict=True))
    return [
        replace(
            line,
            comparison=compared.get(line.row),
            p=p.get(line.row),
            p_no_worse=no_worse.get(line.row),
            p_equivalent=equivalent.get(line.row),
            tied=tied.get(line.row, False),
        )
        for line in lines
    ]


def _comparable(line: Line, reference: Line) -> bool:
    """Whether both have counts of the same examples, and both several seeds or both one."""
    a, b = line.resampled, reference.resampled
    if a is None or b is None:
        return False
    return (len(a.scores) > 1) == (len(b.scores) > 1) and a.counts.shape[1] == b.counts.shape[1]


def _holm(p_values: Mapping[Row, float]) -> dict[Row, float]:
    if not p_values:
        return {}
    return dict(zip(p_values, holm(list(p_values.values())), strict=True))


@dataclass(frozen=True)
class Power:
    """What a task's tests find 4 times in 5, at the strictest step of Holm's correction."""

    least: float  # difference, of the steadiest line
    most: float  # of the least steady one
    margin: float  # at which an equal method in the steadiest line is shown to be no worse


def power(findings: Analysis, task: str) -> Power | None:
    """None if nothing was compared. Differences may be larger than the metric allows: then there is none to find."""
    compared = [line.comparison.difference for line in findings.of_task(task) if line.comparison is not None]
    uncertain = [difference for difference in compared if difference.standard_error]
    if not uncertain:
        return None
    level = 0.05 / len(compared)
    visible = [minimum_detectable_difference(difference, level=level) for difference in uncertain]
    one_sided = [minimum_detectable_difference(difference, level=2 * level) for difference in uncertain]
    return Power(min(visible), max(visible), min(one_sided))


def _refuse_mixture(task: str, used: Sequence[Stored]) -> None:
    for what, key in (("data", "data_fingerprint"), ("models", "model_fingerprint")):
        seen: dict[str, Stored] = {}
        for stored in used:
            if stored.record.result is not None:
                seen.setdefault(getattr(stored.record.result, key), stored)
        if len(seen) > 1:
            first, second = list(seen.values())[:2]
            raise UserError(
                f"{second.path}: of other {what} than {first.path.name}, and both are {task}: not to be compared"
            )


def _ground(environment: Environment) -> str:
    """What may change a number, in words."""
    hardware, code = environment.hardware, environment.code
    commit = "peftlab " + (code.commit[:7] if code.commit else environment.libraries.get("peftlab", "unknown"))
    changed = " with uncommitted changes" if code.modified else ""
    machine = ", ".join([*hardware.accelerators, hardware.processor])
    names = ("torch", "transformers", "peft", "bitsandbytes")
    libraries = ", ".join(f"{name} {environment.libraries[name]}" for name in names if name in environment.libraries)
    threads = f"{hardware.threads} thread{'s' if hardware.threads > 1 else ''}"
    placed = ", ".join(filter(None, [machine, threads, environment.placement, environment.precision]))
    return f"{commit}{changed}; {libraries}; {placed}"


def _grounds(used: Sequence[Stored]) -> Counter[str]:
    results = [stored.record.result for stored in used if stored.record.result is not None]
    return Counter(_ground(result.environment) for result in results)


def _most_common(used: Sequence[Stored]) -> str:
    grounds: Any = _grounds(used)
    return min(grounds, key=lambda ground: (-grounds[ground], ground)) if grounds else ""


def _marked(line: Line, common: str) -> Line:
    grounds = _grounds([*line.ended, *line.trials])
    measured_on = None if line.measured is None else line.measured.record.measured_on
    ground = None if measured_on is None else _ground(measured_on)
    return replace(
        line,
        marks=tuple(sorted(ground for ground in grounds if ground != common)),
        measured_elsewhere=ground if ground != common else None,
    )


def _timed_alike(ledger: Profile) -> tuple[object, ...]:
    """What two ledgers must share for their times to be compared."""
    hardware = ledger.environment.hardware
    machine = (hardware.processor, hardware.cores, hardware.threads, *hardware.accelerators)
    return (*machine, ledger.environment.placement, ledger.environment.precision, ledger.examples, ledger.length)
