"""The columns of a suite's tables, and how a number is written in them; "" is what was not measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from peftlab.findings import Findings, Line
from peftlab.results import RunResult


@dataclass(frozen=True)
class Column:
    title: str
    text: Callable[[Line], str]
    bold: bool = False  # where the line is tied with the best


def result_columns(findings: Findings, task: str) -> list[Column]:
    """What a paper shows of a task."""
    suite = findings.suite
    return [
        Column("trainable", lambda line: _count(line, lambda result: result.parameters.trainable)),
        Column("share", lambda line: percent(_first(line, lambda result: result.parameters.share))),
        Column("saved", lambda line: size(saved_bytes(line))),
        Column("n", runs),
        Column(f"{suite.split} {findings.metric(task)}", score, bold=True),
        Column("95 % interval", interval),
        Column(f"difference to {suite.reference}", difference),
        Column("p", lambda line: probability(line.p)),
        Column(f"p, no worse by {suite.margin:g}", lambda line: probability(line.p_no_worse)),
    ]


def cost_columns(findings: Findings) -> list[Column]:
    """What the runs cost. Times only if the machine did nothing else."""
    times = findings.suite.own_machine
    return [
        Column("method", lambda line: _count(line, lambda result: result.parameters.method)),
        Column("head", lambda line: _count(line, lambda result: result.parameters.head)),
        Column("peak of the process", lambda line: size(line.high_water_bytes)),
        Column("padding", lambda line: percent(_middle(line, lambda result: result.cost.padding_share))),
        Column("tokens", lambda line: _count(line, lambda result: result.cost.tokens)),
        Column("training s", lambda line: _rounded(line, lambda r: r.cost.train_seconds) if times else ""),
        Column("tokens/s", lambda line: _rounded(line, lambda r: r.cost.tokens_per_second) if times else ""),
    ]


def title(line: Line) -> tuple[str, str]:
    """Method and base."""
    name = line.recipe.method.title
    same = line.row.method == line.recipe.method.kind
    base = line.recipe.quantization.title if line.recipe.quantization.quantizes else "unquantised"
    return name if same else f"{name} ({line.row.method})", base


def runs(line: Line) -> str:
    """How many seeds have a score, of how many that ended or are still to come, and how many diverged."""
    done, diverged = line.states["done"], line.states["diverged"]
    of = f"{done}" if done == line.wanted else f"{done} of {line.wanted}"
    return "" if line.refused else of + (f", {diverged} diverged" if diverged else "")


def score(line: Line) -> str:
    """Mean and sample deviation."""
    if line.score is None:
        return ""
    spread = "" if line.score.deviation is None else f" ± {line.score.deviation:.4f}"
    return f"{line.score.mean:.4f}{spread}"


def interval(line: Line) -> str:
    if line.estimate is None:
        return ""
    low, high = line.estimate.interval()
    return f"{low:.4f} to {high:.4f}"


def difference(line: Line) -> str:
    if line.comparison is None:
        return ""
    low, high = line.comparison.difference.interval()
    return f"{line.comparison.difference.value:+.4f} ({low:+.4f} to {high:+.4f})"


def probability(p: float | None) -> str:
    """
    >>> probability(0.01234), probability(1e-9), probability(None)
    ('0.012', '< 0.001', '')
    """
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def size(count: float | None) -> str:
    """Bytes for people.

    >>> size(2_700_000), size(14_000), size(None)
    ('2.6 MiB', '13.7 KiB', '')
    """
    if count is None:
        return ""
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def percent(share: float | None) -> str:
    """
    >>> percent(0.03), percent(0.000153)
    ('3.00 %', '0.0153 %')
    """
    if share is None:
        return ""
    return f"{share * 100:.2f} %" if share >= 0.001 or not share else f"{share * 100:.3g} %"


def saved_bytes(line: Line) -> float | None:
    return _first(line, lambda result: result.cost.adapter_bytes)


def trainable(line: Line) -> float | None:
    return _first(line, lambda result: result.parameters.trainable)


def middle(values: Iterable[float | None]) -> float | None:
    """The median of what was measured."""
    measured = [value for value in values if value is not None]
    return median(measured) if measured else None


def _middle(line: Line, figure: Callable[[RunResult], float | None]) -> float | None:
    return middle(figure(result) for result in line.results)


def _first(line: Line, figure: Callable[[RunResult], float]) -> float | None:
    """Of any run: the same in all. A trial of the combination will do."""
    return next((figure(result) for result in line.results or line.trial_results), None)


def _count(line: Line, figure: Callable[[RunResult], float]) -> str:
    value = _first(line, figure)
    return "" if value is None else f"{value:,.0f}"


def _rounded(line: Line, figure: Callable[[RunResult], float]) -> str:
    value = _middle(line, figure)
    return "" if value is None else f"{value:,.0f}"
