"""Columns of a suite's tables: title, text of a row's cell and the value it is sorted by."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from peftlab.profiling.profile import MIB, Profile, Times
from peftlab.reports.analysis import Analysis
from peftlab.reports.formatting import byte_size, count, decimal, percent, probability, scientific
from peftlab.reports.result_row import ResultRow
from peftlab.results.run_result import RunResult


@dataclass(frozen=True)
class Column:
    """A column of numbers."""

    title: str
    text: Callable[[ResultRow], str]
    """Cell of a row; "" if the value was not measured."""
    value: Callable[[ResultRow], float | None]
    """The number that the cell shows, which rows are sorted by."""
    mark_best: bool = False
    """Set the cell in bold if the row is tied for best."""


def result_columns(analysis: Analysis, task: str) -> list[Column]:
    """Score, its interval and the comparison with the reference."""
    suite = analysis.suite
    return [
        _count_column("trainable parameters", trainable_parameters),
        _column("trainable fraction", lambda row: _any_run(row, lambda r: r.parameters.trainable_fraction), percent),
        _column("adapter size", adapter_bytes, byte_size),
        Column("n", finished_runs, lambda row: row.states["done"]),
        Column(f"{suite.split} {analysis.metric(task)}", score, _mean, mark_best=True),
        Column("95 % interval", interval, lambda row: row.interval and row.interval[0]),
        Column(f"difference to {suite.reference}", difference, _difference),
        _column("p", lambda row: row.p, probability),
        _column(f"non-inferiority p (margin {suite.margin:g})", lambda row: row.p_noninferiority, probability),
    ]


def cost_columns(analysis: Analysis, task: str) -> list[Column]:
    """Parameters, memory of the process and training time. Times only if no other work used the machine."""
    exclusive = analysis.suite.own_machine
    pruned = any(effective_parameters(row) is not None for row in analysis.of_task(task))

    def time(figure: Callable[[RunResult], float]) -> Callable[[ResultRow], float | None]:
        return lambda row: _median(row, figure) if exclusive else None

    return [
        _count_column("method parameters", lambda row: _any_run(row, lambda r: r.parameters.method)),
        _count_column("head parameters", lambda row: _any_run(row, lambda r: r.parameters.head)),
        *([_count_column("effective parameters", effective_parameters)] if pruned else []),
        _column("peak process memory", lambda row: row.peak_process_bytes, byte_size),
        _column("padding", lambda row: _median(row, lambda r: r.cost.padding_fraction), percent),
        _count_column("training tokens", lambda row: _any_run(row, lambda r: r.cost.tokens)),
        _column("best checkpoint at", _best_checkpoint_at, percent),
        _count_column("training time (s)", time(lambda r: r.cost.train_seconds)),
        _count_column("tokens/s", time(lambda r: r.cost.tokens_per_second)),
    ]


def memory_columns(analysis: Analysis, task: str) -> list[Column]:
    """Memory of a training step by tensor group, in MiB; the peak of an evaluation; on a GPU, the allocator's."""
    on_gpu = any(row.profile and row.profile.memory.reserved is not None for row in analysis.of_task(task))
    return [
        _profile_column("base weights", lambda profile: profile.memory.base / MIB),
        _profile_column("quantization constants", lambda profile: profile.memory.constants / MIB),
        _profile_column("method and head", lambda profile: (profile.memory.method + profile.memory.head) / MIB),
        _profile_column("gradients", lambda profile: profile.memory.gradients / MIB),
        _profile_column("optimizer", lambda profile: profile.memory.optimizer / MIB),
        _profile_column("activations", lambda profile: profile.memory.activations / MIB),
        _profile_column("transient", lambda profile: profile.memory.transient / MIB),
        _profile_column("peak", lambda profile: profile.memory.peak / MIB),
        _profile_column("evaluation peak", lambda profile: _mib(profile.memory.evaluation_peak)),
        *([_profile_column("reserved", lambda profile: _mib(profile.memory.reserved))] if on_gpu else []),
    ]


def compute_columns(analysis: Analysis) -> list[Column]:
    """FLOPs of a training step, its time relative to the reference, and latencies of inference relative to the base."""
    reference = analysis.suite.reference

    def times(row: ResultRow) -> StepTimes | None:
        return StepTimes.of(row.profile, analysis.reference_profile(row))

    def step_text(row: ResultRow) -> str:
        step = times(row)
        if step is None:
            return ""
        low, high = step.relative_quartiles
        return f"{step.relative_time:.2f} ({low:.2f} to {high:.2f})"

    def step_time(row: ResultRow) -> float | None:
        step = times(row)
        return None if step is None else step.relative_time

    def throughput(row: ResultRow) -> float | None:
        step = times(row)
        return None if step is None else step.relative_throughput

    def base_latency(row: ResultRow) -> float | None:
        profile, other = row.profile, analysis.reference_profile(row)
        if profile is None or other is None or profile.inference is None or other.inference is None:
            return None
        return _ratio(profile.inference.base, other.inference.unmerged)

    return [
        _profile_column("forward MFLOPs/token", lambda profile: profile.flops.forward / 1e6),
        _profile_column("backward MFLOPs/token", lambda profile: profile.flops.backward / 1e6),
        _profile_column("step/forward FLOPs", lambda profile: profile.flops.ratio),
        Column(f"step time / {reference}", step_text, step_time),
        _column(f"tokens/s / {reference}", throughput, decimal),
        _profile_column(
            "share of peak matmul", lambda profile: profile.times.matmul_fraction if profile.times else None, percent
        ),
        _profile_column("unmerged / base latency", lambda profile: _relative_latency(profile, "unmerged")),
        _profile_column("merged / base latency", lambda profile: _relative_latency(profile, "merged")),
        _column(f"base / {reference} latency", base_latency, decimal),
        _profile_column(
            "merge error", lambda profile: profile.inference.merge_error if profile.inference else None, scientific
        ),
    ]


@dataclass(frozen=True)
class StepTimes:
    """Step times of a profile and of the reference, corrected for the speed of the machine at the time.

    Each profile also times a large matmul in the same process; a slower machine slows both alike.
    """

    times: Times
    reference: Times

    @classmethod
    def of(cls, profile: Profile | None, reference: Profile | None) -> StepTimes | None:
        if profile is None or reference is None or profile.times is None or reference.times is None:
            return None
        return cls(profile.times, reference.times)

    @property
    def reference_seconds(self) -> float:
        """Seconds of the reference's step at the speed that the machine had when the profile was measured."""
        return self.reference.median * self.reference.matmul_flops_per_second / self.times.matmul_flops_per_second

    @property
    def relative_time(self) -> float:
        return self.times.median / self.reference_seconds

    @property
    def relative_quartiles(self) -> tuple[float, float]:
        low, high = self.times.quartiles
        return low / self.reference_seconds, high / self.reference_seconds

    @property
    def relative_throughput(self) -> float:
        ratio = self.times.tokens_per_second / self.reference.tokens_per_second
        return ratio * self.reference_seconds / self.reference.median


def method_title(row: ResultRow) -> str:
    """Title of the method, with its name in the suite if that is not the method's kind."""
    title = row.recipe.method.title
    name = row.combination.method
    return title if name == row.recipe.method.kind else f"{title} ({name})"


def precision(row: ResultRow) -> str:
    """Quantization of the base weights; without one, the dtype that a run recorded."""
    if row.recipe.quantization.quantizes:
        return row.recipe.quantization.title
    recorded = next((result.environment.precision for result in (*row.results, *row.trial_results)), None)
    return {None: "none", "float32": "none (fp32)", "bfloat16": "none (bf16)"}[recorded]


def finished_runs(row: ResultRow) -> str:
    """Number of seeds with a score, the number planned if it is larger, and the number of diverged runs."""
    if row.incompatibility:
        return ""
    done, diverged = 0 if row.score is None else row.score.n, row.states["diverged"]
    text = f"{done}" if done == row.seeds else f"{done} of {row.seeds}"
    return text + (f", {diverged} diverged" if diverged else "")


def score(row: ResultRow) -> str:
    """Mean and sample standard deviation."""
    if row.score is None:
        return ""
    std = "" if row.score.std is None else f" ± {row.score.std:.4f}"
    return f"{row.score.mean:.4f}{std}"


def interval(row: ResultRow) -> str:
    if row.interval is None:
        return ""
    low, high = row.interval
    return f"{low:.4f} to {high:.4f}"


def difference(row: ResultRow) -> str:
    if row.comparison is None or row.difference_interval is None:
        return ""
    low, high = row.difference_interval
    return f"{row.comparison.difference.value:+.4f} ({low:+.4f} to {high:+.4f})"


def adapter_bytes(row: ResultRow) -> float | None:
    return _any_run(row, lambda result: result.cost.adapter_bytes)


def trainable_parameters(row: ResultRow) -> float | None:
    return _any_run(row, lambda result: result.parameters.trainable)


def effective_parameters(row: ResultRow) -> float | None:
    """Trainable parameters left after pruning, head included, of methods that prune; median of the runs."""

    def of_run(result: RunResult) -> float | None:
        effective = result.method_stats.get("effective_parameters")
        return None if effective is None else effective + result.parameters.head

    return measured_median(of_run(result) for result in row.results or row.trial_results)


def measured_median(values: Iterable[float | None]) -> float | None:
    """Median of the values that were measured, None if none was."""
    measured = [value for value in values if value is not None]
    return median(measured) if measured else None


def _mean(row: ResultRow) -> float | None:
    return None if row.score is None else row.score.mean


def _difference(row: ResultRow) -> float | None:
    return None if row.comparison is None else row.comparison.difference.value


def _best_checkpoint_at(row: ResultRow) -> float | None:
    """Fraction of the optimizer steps after which validation scored best; median of the runs."""
    return _median(row, lambda result: result.best_step and result.best_step / result.cost.optimizer_steps)


def _median(row: ResultRow, figure: Callable[[RunResult], float | None]) -> float | None:
    return measured_median(figure(result) for result in row.results)


def _any_run(row: ResultRow, figure: Callable[[RunResult], float]) -> float | None:
    """A figure that is the same in every run and trial of the combination."""
    return next((figure(result) for result in row.results or row.trial_results), None)


def _column(title: str, value: Callable[[ResultRow], float | None], form: Callable[[float | None], str]) -> Column:
    return Column(title, lambda row: form(value(row)), value)


def _count_column(title: str, value: Callable[[ResultRow], float | None]) -> Column:
    return _column(title, value, count)


def _profile_column(
    title: str, figure: Callable[[Profile], float | None], form: Callable[[float | None], str] = decimal
) -> Column:
    """A figure of the row's profile."""
    return _column(title, lambda row: None if row.profile is None else figure(row.profile), form)


def _relative_latency(profile: Profile, model: str) -> float | None:
    """Latency of the tuned model, "merged" or "unmerged", relative to the base model."""
    inference = profile.inference
    return None if inference is None else _ratio(getattr(inference, model), inference.base)


def _ratio(numerator: float | None, denominator: float | None) -> float | None:
    return None if numerator is None or denominator is None else numerator / denominator


def _mib(value: int | None) -> float | None:
    return None if value is None else value / MIB
