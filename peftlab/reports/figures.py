"""A suite's figures, told apart by marker and dash as well as by shade: they can be printed in grey."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.profiling.profile import MIB, Profile
from peftlab.reports.analysis import Analysis, Line
from peftlab.reports.columns import title, trainable
from peftlab.statistics.expected_best import expected_best

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

FORMATS = ("pdf", "svg", "png")
MARKERS = "osD^vPX<>*hpd8H"
DASHES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 2)), (0, (7, 2, 1, 2)))
SHADES = ("#000000", "#0b4f8a", "#a33b00", "#3f7f3f", "#7a4fa3", "#8a6d00", "#2f8f9d", "#b04a7a", "#6b6b6b", "#9a9a9a")
FILLS = ("full", "none", "left", "right", "top", "bottom")  # of a marker, by quantisation
# Shade and hatch of a bar's parts, from the left.
FACES = (
    ("0.35", ""),
    ("0.8", "xxx"),
    ("white", "..."),
    ("0.6", "///"),
    ("white", "\\\\\\"),
    ("0.85", ""),
    ("white", ""),
)
STYLE: Any = {
    "font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "legend.fontsize": 7, "lines.linewidth": 1.2, "lines.markersize": 5, "pdf.fonttype": 42, "svg.fonttype": "none",
    "svg.hashsalt": "peftlab", "figure.constrained_layout.use": True,
}  # fmt: skip

Draw = Callable[["Axes", Analysis, str], bool]  # onto axes, of a task; False if there is nothing to draw


def figures(findings: Analysis) -> Iterator[tuple[str, str, Figure]]:
    """Task, name and figure, for each task and sort that has something to show."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    for task in findings.suite.tasks:
        for name, draw in DRAWN.items():
            with matplotlib.rc_context(STYLE):
                figure = Figure(figsize=(5.5, 3.4))
                if draw(figure.add_subplot(), findings, task):
                    yield task, name, figure


def write_figures(findings: Analysis, folder: Path) -> list[Path]:
    """Write each figure in every format; the same bytes for the same results and library."""
    import matplotlib

    written = []
    for task, name, figure in figures(findings):
        for form in FORMATS:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{task}-{name}.{form}"
            dateless: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}[form]
            with matplotlib.rc_context(STYLE):
                figure.savefig(path, metadata=dateless, dpi=150)
            written.append(path)
    return written


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The Pareto front: the points that no other beats in both, cost (less is better) and score; by rising cost.

    >>> front([(1, 0.5), (2, 0.4), (3, 0.9), (3, 0.8)])
    [(1, 0.5), (3, 0.9)]
    """
    best: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or score > best[-1][1]:
            best.append((cost, score))
    return best


def _against_parameters(axes: Axes, findings: Analysis, task: str) -> bool:
    axes.set_xscale("log")
    return _against(axes, findings, task, trainable, "trainable parameters")


def _against_memory(axes: Axes, findings: Analysis, task: str) -> bool:
    """The ledger's peak, if every line with a score has one; or else the process's, likewise."""

    def of_process(line: Line) -> float | None:
        return None if line.high_water_bytes is None else line.high_water_bytes / MIB

    def of_step(line: Line) -> float | None:
        return None if line.ledger is None else line.ledger.memory.peak / MIB

    shown = [line for line in findings.of_task(task) if line.score is not None]
    if shown and all(line.ledger is not None for line in shown):
        return _against(axes, findings, task, of_step, "peak of a training step, MiB")
    if any(line.high_water_bytes is None for line in shown):
        return False
    return _against(axes, findings, task, of_process, "peak of the process, MiB")


def _against(axes: Axes, findings: Analysis, task: str, cost: Callable[[Line], float | None], label: str) -> bool:
    points, shown = [], []
    for line in findings.of_task(task):
        x = cost(line)
        if x is None or line.score is None:
            continue
        style = _style(findings, line)
        low, high = line.interval or (line.score.mean, line.score.mean)
        error = [[line.score.mean - low], [high - line.score.mean]]
        axes.errorbar([x], [line.score.mean], yerr=error, linestyle="none", capsize=2, **style)
        points.append((x, line.sign * line.score.mean))
        shown.append(line)
    if not points:
        return False
    best = front(points)
    sign = findings.of_task(task)[0].sign
    axes.step(
        [x for x, _ in best], [sign * y for _, y in best], where="post", color="0.6", zorder=0, label="Pareto front"
    )
    axes.set_xlabel(label)
    axes.set_ylabel(f"{findings.suite.split} {findings.metric(task)}")
    _legend(axes, [*_keys(findings, shown), *axes.get_legend_handles_labels()[0]])
    return True


def _keys(findings: Analysis, shown: Sequence[Line]) -> list[Line2D]:
    """What a legend has to explain: each method's marker and shade once, and each base's fill once."""
    from matplotlib.lines import Line2D

    methods = {title(line)[0]: {**_style(findings, line), "fillstyle": "full"} for line in shown}
    bases = {title(line)[1]: {**_style(findings, line), "marker": "o", "color": "black"} for line in shown}
    keys = methods | (bases if len(bases) > 1 else {})
    return [Line2D([], [], linestyle="none", label=name, **style) for name, style in keys.items()]


def _learning_rates(axes: Axes, findings: Analysis, task: str) -> bool:
    drawn = False
    for row, search in findings.plan.searches.items():
        tried = [
            (trial.learning_rate, score)
            for trial, score in zip(search.trials, search.scores, strict=True)
            if score is not None
        ]
        if row.task != task or not tried:
            continue
        line = next(line for line in findings.lines if line.row == row)
        style = _style(findings, line, lines=True)
        axes.plot(
            [rate for rate, _ in tried], [line.sign * score for _, score in tried], label=_name(findings, line), **style
        )
        drawn = True
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel(f"validation {findings.metric(task)}")
    _legend(axes)
    return drawn


def _expected_best(axes: Axes, findings: Analysis, task: str) -> bool:
    from matplotlib.ticker import MaxNLocator

    drawn = False
    for row, search in findings.plan.searches.items():
        scores = [score for score in search.scores if score is not None]
        if row.task != task or not scores:
            continue
        line = next(line for line in findings.lines if line.row == row)
        style = _style(findings, line, lines=True)
        best = [line.sign * score for score in expected_best(scores)]
        axes.plot(range(1, len(best) + 1), best, label=_name(findings, line), **style)
        drawn = True
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trials of the learning rate")
    axes.set_ylabel(f"expected best validation {findings.metric(task)}")
    _legend(axes)
    return drawn


def _learning_curves(axes: Axes, findings: Analysis, task: str) -> bool:
    """The mean over seeds at each evaluation that all of them reached."""
    drawn = False
    for line in findings.of_task(task):
        curves = [result.curve for result in line.results]
        if not curves or line.row.quantization != findings.suite.quantizations[0].kind:
            continue
        shared = sorted(set.intersection(*(set(curve.steps) for curve in curves)))
        at = [[curve.scores[curve.steps.index(step)] for curve in curves] for step in shared]
        style = _style(findings, line, lines=True)
        axes.plot(shared, [sum(scores) / len(scores) for scores in at], label=_name(findings, line), **style)
        drawn = bool(shared) or drawn
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel(f"validation {findings.metric(task)}")
    _legend(axes)
    return drawn


def _memory_bars(axes: Axes, findings: Analysis, task: str) -> bool:
    """A training step's peak, made up of its parts, if every line with a run or a ledger has a ledger."""
    lines = findings.of_task(task)
    shown = [line for line in lines if line.ledger is not None or line.high_water_bytes is not None]
    if shown and all(line.ledger is not None for line in shown):
        return _stacked_bars(axes, [(", ".join(title(line)), line.ledger) for line in shown if line.ledger is not None])
    bars = [(", ".join(title(line)), line.high_water_bytes) for line in lines if line.score is not None]
    known = [(name, peak / MIB) for name, peak in bars if peak is not None]
    if not known or len(known) < len(bars):
        return False
    axes.barh([name for name, _ in known], [peak for _, peak in known], color="0.7", edgecolor="black")
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=6)
    axes.set_xlabel("peak of the process, MiB")
    return True


def _stacked_bars(axes: Axes, bars: Sequence[tuple[str, Profile]]) -> bool:
    names = [name for name, _ in bars]
    ends = [0.0] * len(bars)
    for number, part in enumerate(bars[0][1].memory.at_peak):
        sizes = [ledger.memory.at_peak[part] / MIB for _, ledger in bars]
        shade, hatch = FACES[number % len(FACES)]
        axes.barh(names, sizes, left=ends, label=part, color=shade, hatch=hatch, edgecolor="black", linewidth=0.5)
        ends = [end + size for end, size in zip(ends, sizes, strict=True)]
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=6)
    axes.set_xlabel("peak of a training step, MiB")
    _legend(axes)
    return True


DRAWN: dict[str, Draw] = {
    "parameters": _against_parameters,
    "memory": _against_memory,
    "learning-rates": _learning_rates,
    "trials": _expected_best,
    "learning-curves": _learning_curves,
    "memory-bars": _memory_bars,
}


def _name(findings: Analysis, line: Line) -> str:
    """The base is said where it differs between lines."""
    return ", ".join(title(line)) if findings.suite.trials.per_quantization else title(line)[0]


def _style(findings: Analysis, line: Line, *, lines: bool = False) -> dict[str, Any]:
    """Marker, shade and dash by method; the marker's fill by quantisation."""
    method = list(findings.suite.methods).index(line.row.method)
    kinds = [quantization.kind for quantization in findings.suite.quantizations]
    style: dict[str, Any] = {
        "marker": MARKERS[method % len(MARKERS)],
        "color": SHADES[method % len(SHADES)],
        "fillstyle": FILLS[kinds.index(line.row.quantization) % len(FILLS)],
        "markerfacecoloralt": "white",
    }
    return style | ({"linestyle": DASHES[method % len(DASHES)]} if lines else {})


def _legend(axes: Axes, handles: Sequence[Artist] = ()) -> None:
    shown = handles or axes.get_legend_handles_labels()[0]
    if shown:
        axes.legend(handles=shown, loc="center left", bbox_to_anchor=(1.0, 0.5), ncols=1)
