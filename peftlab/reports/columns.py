"""The columns of a suite's tables, and how a number is written in them; "" is what was not measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from peftlab.profiling.profile import MIB, Profile, Times
from peftlab.reports.analysis import Analysis, Line
from peftlab.results.run_result import RunResult

DASH = "–"  # of what was not measured


@dataclass(frozen=True)
class Column:
    title: str
    text: Callable[[Line], str]
    value: Callable[[Line], float | None] | None = None  # what it is sorted by, where that is not the text
    bold: bool = False  # where the line is tied with the best


def result_columns(findings: Analysis, task: str) -> list[Column]:
    """What a paper shows of a task."""
    suite = findings.suite
    return [
        Column("trainable", lambda line: _count(line, lambda result: result.parameters.trainable), trainable),
        Column(
            "share", lambda line: percent(_first(line, lambda result: result.parameters.trainable_fraction)), trainable
        ),
        Column("saved", lambda line: size(saved_bytes(line)), saved_bytes),
        Column("n", runs, lambda line: line.states["done"]),
        Column(f"{suite.split} {findings.metric(task)}", score, _mean, bold=True),
        Column("95 % interval", interval, lambda line: line.interval and line.interval[0]),
        Column(f"difference to {suite.reference}", difference, _difference),
        Column("p", lambda line: probability(line.p), lambda line: line.p),
        Column(
            f"p, no worse by {suite.margin:g}",
            lambda line: probability(line.p_no_worse),
            lambda line: line.p_no_worse,
        ),
    ]


def cost_columns(findings: Analysis, task: str) -> list[Column]:
    """What the runs cost. Times only if the machine did nothing else."""
    times = findings.suite.own_machine
    pruned = any(effective_parameters(line) is not None for line in findings.of_task(task))
    return [
        Column("method", lambda line: _count(line, lambda result: result.parameters.method)),
        Column("head", lambda line: _count(line, lambda result: result.parameters.head)),
        *([Column("trainable at the end", _at_the_end, effective_parameters)] if pruned else []),
        Column("peak of the process", lambda line: size(line.high_water_bytes), lambda line: line.high_water_bytes),
        Column("padding", lambda line: percent(_middle(line, lambda result: result.cost.padding_fraction))),
        Column("tokens", lambda line: _count(line, lambda result: result.cost.tokens)),
        Column("best after", lambda line: percent(_best_after(line)), _best_after),
        Column("training s", lambda line: _rounded(line, lambda r: r.cost.train_seconds) if times else ""),
        Column("tokens/s", lambda line: _rounded(line, lambda r: r.cost.tokens_per_second) if times else ""),
    ]


def memory_columns(findings: Analysis, task: str) -> list[Column]:
    """Where the bytes of a training step are, in MiB; what an evaluation takes, and what a GPU's allocator held."""
    on_gpu = any(line.ledger and line.ledger.memory.reserved is not None for line in findings.of_task(task))
    return [
        _measured("base weights", lambda ledger: ledger.memory.base / MIB, _hundredths),
        _measured("quantisation constants", lambda ledger: ledger.memory.constants / MIB, _hundredths),
        _measured("method and head", lambda ledger: (ledger.memory.method + ledger.memory.head) / MIB, _hundredths),
        _measured("gradients", lambda ledger: ledger.memory.gradients / MIB, _hundredths),
        _measured("optimiser", lambda ledger: ledger.memory.optimizer / MIB, _hundredths),
        _measured("activations", lambda ledger: ledger.memory.activations / MIB, _hundredths),
        _measured("transient", lambda ledger: ledger.memory.transient / MIB, _hundredths),
        _measured("peak", lambda ledger: ledger.memory.peak / MIB, _hundredths),
        _measured("evaluation", lambda ledger: _mib(ledger.memory.evaluation_peak), _hundredths),
        *([_measured("reserved", lambda ledger: _mib(ledger.memory.reserved), _hundredths)] if on_gpu else []),
    ]


def speed_columns(findings: Analysis) -> list[Column]:
    """Operations of a training step, and its times and those of inference as shares of others."""
    reference = findings.suite.reference

    def times(line: Line) -> tuple[Times, Times] | None:
        own, other = line.ledger, findings.reference_ledger(line)
        if own is None or other is None or own.times is None or other.times is None:
            return None
        return own.times, other.times

    def unit(own: Times, other: Times) -> float:
        """Seconds of the reference's step, at the speed that the machine had when `own` was timed."""
        return other.median * other.matrix_rate / own.matrix_rate

    def step(line: Line) -> float | None:
        return None if (found := times(line)) is None else found[0].median / unit(*found)

    def step_text(line: Line) -> str:
        if (found := times(line)) is None:
            return ""
        low, high = found[0].quartiles
        return f"{step(line):.2f} ({low / unit(*found):.2f} to {high / unit(*found):.2f})"

    def rate(line: Line) -> float | None:
        if (found := times(line)) is None:
            return None
        own, other = found
        return own.tokens_per_second / other.tokens_per_second * unit(own, other) / other.median

    def base(line: Line) -> float | None:
        own, other = line.ledger, findings.reference_ledger(line)
        if own is None or other is None or own.inference is None or other.inference is None:
            return None
        return _ratio(own.inference.base, other.inference.unmerged)

    return [
        _measured("forward", lambda ledger: ledger.flops.forward / 1e6, _hundredths),
        _measured("backward", lambda ledger: ledger.flops.backward / 1e6, _hundredths),
        _measured("step in forwards", lambda ledger: ledger.flops.ratio, _hundredths),
        Column(f"step to {reference}", step_text, step),
        Column(f"tokens/s to {reference}", lambda line: _hundredths(rate(line)), rate),
        _measured("of the matrix rate", lambda ledger: ledger.times.rate_share if ledger.times else None, percent),
        _measured("unmerged to base", lambda ledger: _to_base(ledger, "unmerged"), _hundredths),
        _measured("merged to base", lambda ledger: _to_base(ledger, "merged"), _hundredths),
        Column(f"base to {reference}", lambda line: _hundredths(base(line)), base),
        _measured("merge error", lambda ledger: ledger.inference.merge_error if ledger.inference else None, _small),
    ]


def title(line: Line) -> tuple[str, str]:
    """Method and base."""
    name = line.recipe.method.title
    same = line.row.method == line.recipe.method.kind
    base = line.recipe.quantization.title if line.recipe.quantization.quantizes else "unquantised"
    return name if same else f"{name} ({line.row.method})", base


def runs(line: Line) -> str:
    """How many seeds have a score, of how many that ended or are still to come, and how many diverged."""
    done, diverged = 0 if line.score is None else line.score.n, line.states["diverged"]
    of = f"{done}" if done == line.wanted else f"{done} of {line.wanted}"
    return "" if line.refused else of + (f", {diverged} diverged" if diverged else "")


def score(line: Line) -> str:
    """Mean and sample deviation."""
    if line.score is None:
        return ""
    spread = "" if line.score.std is None else f" ± {line.score.std:.4f}"
    return f"{line.score.mean:.4f}{spread}"


def interval(line: Line) -> str:
    if line.interval is None:
        return ""
    low, high = line.interval
    return f"{low:.4f} to {high:.4f}"


def difference(line: Line) -> str:
    if line.comparison is None or line.gap is None:
        return ""
    low, high = line.gap
    return f"{line.comparison.difference.value:+.4f} ({low:+.4f} to {high:+.4f})"


def _mean(line: Line) -> float | None:
    return None if line.score is None else line.score.mean


def _difference(line: Line) -> float | None:
    return None if line.comparison is None else line.comparison.difference.value


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


def effective_parameters(line: Line) -> float | None:
    """Those that training left in use, head included, where a method says so; the median of the runs."""

    def of_run(result: RunResult) -> float | None:
        effective = result.method_stats.get("effective_parameters")
        return None if effective is None else effective + result.parameters.head

    return middle(of_run(result) for result in line.results or line.trial_results)


def middle(values: Iterable[float | None]) -> float | None:
    """The median of what was measured."""
    measured = [value for value in values if value is not None]
    return median(measured) if measured else None


def _best_after(line: Line) -> float | None:
    """The share of training's steps after which validation scored best; the median of the runs."""
    return _middle(line, lambda result: result.best_step and result.best_step / result.cost.optimizer_steps)


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


def _at_the_end(line: Line) -> str:
    value = effective_parameters(line)
    return "" if value is None else f"{value:,.0f}"


def _measured(name: str, figure: Callable[[Profile], float | None], form: Callable[[float | None], str]) -> Column:
    """A figure of the line's ledger."""

    def value(line: Line) -> float | None:
        return None if line.ledger is None else figure(line.ledger)

    return Column(name, lambda line: form(value(line)), value)


def _to_base(ledger: Profile, model: str) -> float | None:
    inference = ledger.inference
    return None if inference is None else _ratio(getattr(inference, model), inference.base)


def _ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one / other


def _mib(count: int | None) -> float | None:
    return None if count is None else count / MIB


def _small(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _hundredths(value: float | None) -> str:
    return "" if value is None else f"{value:,.2f}"
