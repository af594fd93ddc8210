"""Contents of a suite's figures: points, curves and bars, without drawing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from peftlab.profiling.profile import MIB
from peftlab.reports.analysis import Analysis
from peftlab.reports.columns import method_title, precision, trainable_parameters
from peftlab.reports.result_row import ResultRow
from peftlab.statistics.expected_best import expected_best
from peftlab.suites.plan import Search


@dataclass(frozen=True)
class Series:
    """Position of a row's method and quantization in the suite, which fixes its marker, color, dash and fill."""

    method: int
    quantization: int


@dataclass(frozen=True)
class Point:
    """A score with its 95 % interval at some cost."""

    series: Series
    method: str
    precision: str
    x: float
    y: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Scatter:
    """Scores against a cost, with the Pareto front."""

    points: Sequence[Point]
    front: Sequence[tuple[float, float]]
    x_label: str
    y_label: str
    log_x: bool = False


@dataclass(frozen=True)
class Curve:
    series: Series
    label: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Curves:
    curves: Sequence[Curve]
    x_label: str
    y_label: str
    log_x: bool = False
    integer_x: bool = False


@dataclass(frozen=True)
class Bars:
    """Horizontal bars, stacked if there are several parts."""

    labels: Sequence[str]
    parts: Mapping[str, Sequence[float]]
    """Lengths by part, from the left; a single part has no legend."""
    x_label: str


Plot = Scatter | Curves | Bars


def plots(analysis: Analysis, task: str) -> Iterator[tuple[str, str, Plot]]:
    """Name, title and content of each figure of a task that has something to show."""
    for name, (title, build) in PLOTS.items():
        plot = build(analysis, task)
        if plot is not None:
            yield name, title, plot


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points (cost, score) that no other point beats in both, by increasing cost. Lower cost and higher score win.

    >>> pareto_front([(1, 0.5), (2, 0.4), (3, 0.9), (3, 0.8)])
    [(1, 0.5), (3, 0.9)]
    """
    best: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or score > best[-1][1]:
            best.append((cost, score))
    return best


def _parameters(analysis: Analysis, task: str) -> Plot | None:
    return _scatter(analysis, task, trainable_parameters, "trainable parameters", log_x=True)


def _memory(analysis: Analysis, task: str) -> Plot | None:
    """Peak of a training step if every row with a score is profiled, else of the process if every row has that."""

    def of_process(row: ResultRow) -> float | None:
        return None if row.peak_process_bytes is None else row.peak_process_bytes / MIB

    def of_step(row: ResultRow) -> float | None:
        return None if row.profile is None else row.profile.memory.peak / MIB

    scored = [row for row in analysis.of_task(task) if row.score is not None]
    if scored and all(row.profile is not None for row in scored):
        return _scatter(analysis, task, of_step, "peak memory of a training step (MiB)")
    if any(row.peak_process_bytes is None for row in scored):
        return None
    return _scatter(analysis, task, of_process, "peak memory of the process (MiB)")


def _scatter(
    analysis: Analysis, task: str, cost: Callable[[ResultRow], float | None], x_label: str, *, log_x: bool = False
) -> Scatter | None:
    points = []
    for row in analysis.of_task(task):
        x = cost(row)
        if x is None or row.score is None:
            continue
        mean = row.score.mean
        series = _series(analysis, row)
        points.append(Point(series, method_title(row), precision(row), x, mean, row.interval or (mean, mean)))
    if not points:
        return None
    sign = analysis.of_task(task)[0].sign
    front = [(x, sign * y) for x, y in pareto_front([(point.x, sign * point.y) for point in points])]
    return Scatter(points, front, x_label, f"{analysis.suite.split} {analysis.metric(task)}", log_x)


def _learning_rates(analysis: Analysis, task: str) -> Plot | None:
    curves = []
    for row, search in _searches(analysis, task):
        scored = [
            (trial.learning_rate, row.sign * score)
            for trial, score in zip(search.trials, search.scores, strict=True)
            if score is not None
        ]
        if scored:
            rates, scores = zip(*scored, strict=True)
            curves.append(Curve(_series(analysis, row), _label(analysis, row), rates, scores))
    y_label = f"validation {analysis.metric(task)}"
    return Curves(curves, "learning rate", y_label, log_x=True) if curves else None


def _expected_best(analysis: Analysis, task: str) -> Plot | None:
    curves = []
    for row, search in _searches(analysis, task):
        scores = [score for score in search.scores if score is not None]
        if scores:
            best = [row.sign * score for score in expected_best(scores)]
            curves.append(Curve(_series(analysis, row), _label(analysis, row), range(1, len(best) + 1), best))
    y_label = f"expected best validation {analysis.metric(task)}"
    return Curves(curves, "learning-rate trials", y_label, integer_x=True) if curves else None


def _learning_curves(analysis: Analysis, task: str) -> Plot | None:
    """Mean over seeds at each evaluation that all of them reached, with the first quantization of the suite."""
    curves = []
    for row in analysis.of_task(task):
        runs = [result.curve for result in row.results]
        if not runs or row.combination.quantization != analysis.suite.quantizations[0].kind:
            continue
        steps = sorted(set.intersection(*(set(run.steps) for run in runs)))
        scores = [[run.scores[run.steps.index(step)] for run in runs] for step in steps]
        means = [sum(at_step) / len(at_step) for at_step in scores]
        curves.append(Curve(_series(analysis, row), _label(analysis, row), steps, means))
    if not any(curve.x for curve in curves):
        return None
    return Curves(curves, "optimizer steps", f"validation {analysis.metric(task)}")


def _memory_bars(analysis: Analysis, task: str) -> Plot | None:
    """Peak memory of a training step by tensor group, if every row with a run or a profile is profiled."""
    rows = analysis.of_task(task)
    used = [row for row in rows if row.profile is not None or row.peak_process_bytes is not None]
    profiles = [(row, row.profile) for row in used if row.profile is not None]
    if profiles and len(profiles) == len(used):
        parts = {
            part: [profile.memory.at_peak[part] / MIB for _, profile in profiles]
            for part in profiles[0][1].memory.at_peak
        }
        return Bars([_full_label(row) for row, _ in profiles], parts, "peak memory of a training step (MiB)")
    scored = [row for row in rows if row.score is not None]
    peaks = [row.peak_process_bytes / MIB for row in scored if row.peak_process_bytes is not None]
    if not peaks or len(peaks) < len(scored):
        return None
    return Bars([_full_label(row) for row in scored], {"process": peaks}, "peak memory of the process (MiB)")


PLOTS: dict[str, tuple[str, Callable[[Analysis, str], Plot | None]]] = {
    "parameters": ("Score against trainable parameters", _parameters),
    "memory": ("Score against peak memory", _memory),
    "learning-rates": ("Validation score by learning rate", _learning_rates),
    "trials": ("Expected best validation score by number of trials", _expected_best),
    "learning-curves": ("Validation score during training", _learning_curves),
    "memory-bars": ("Peak memory by tensor group", _memory_bars),
}


def _searches(analysis: Analysis, task: str) -> Iterator[tuple[ResultRow, Search]]:
    rows = {row.combination: row for row in analysis.of_task(task)}
    for combination, search in analysis.plan.searches.items():
        if combination in rows:
            yield rows[combination], search


def _series(analysis: Analysis, row: ResultRow) -> Series:
    kinds = [quantization.kind for quantization in analysis.suite.quantizations]
    methods = list(analysis.suite.methods)
    return Series(methods.index(row.combination.method), kinds.index(row.combination.quantization))


def _label(analysis: Analysis, row: ResultRow) -> str:
    """Method, with the precision if the rows of one method differ in it."""
    return _full_label(row) if analysis.suite.trials.per_quantization else method_title(row)


def _full_label(row: ResultRow) -> str:
    return f"{method_title(row)}, {precision(row)}"
