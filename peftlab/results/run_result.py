"""What a run leaves behind: result.json, a versioned record that anything can read without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from peftlab.component import Precision, Settings
from peftlab.errors import UserError, first_error
from peftlab.io.atomic import atomic_write
from peftlab.results.version_1 import upgraded

VERSION: Literal[2] = 2
FILE = "result.json"


class Code(Settings):
    """The checkout peftlab ran from; nothing is known of an installed copy."""

    commit: str | None
    modified: bool | None  # uncommitted changes under peftlab/


class Hardware(Settings):
    processor: str
    cores: int
    threads: int
    memory_bytes: int | None
    accelerators: list[str]
    driver: str | None


class Environment(Settings):
    code: Code
    python: str
    libraries: dict[str, str]
    hardware: Hardware
    device: str
    precision: Precision
    processes: int
    sharded: bool = False  # each held a share of the model (FSDP2, ZeRO-3), not a copy
    zero: int | None = None  # the stage, if DeepSpeed shared out optimiser and gradients
    device_map: str | None = None  # by which one process had the layers on several GPUs

    @property
    def placement(self) -> str:
        """How the model was spread, in words; "" for one process with all of it on one device."""
        words = [f"{self.processes} processes"] if self.processes > 1 else []
        if self.zero is not None:
            words.append(f"under ZeRO-{self.zero}")
        if self.sharded:
            words.append("with a share of the model each")
        return " ".join(words) if self.device_map is None else f"layers on several GPUs ({self.device_map})"


class Parameters(Settings):
    """Counts of numbers, not bytes; a packed 4-bit weight counts as the weights it holds."""

    method: int  # trainable, added or part of the base, head excluded
    head: int  # trainable, the task's
    trainable: int
    base: int  # the base with its head, before the method
    trainable_fraction: float  # trainable / base


class Cost(Settings):
    """Wall seconds by phase, none inside another; tokens and bytes."""

    load_seconds: float  # data, tokenizer, base and method
    train_seconds: float
    evaluate_seconds: float  # validation during training, then test
    optimizer_steps: int
    tokens: int  # trained on, without padding; of an encoder-decoder source and target
    tokens_per_second: float  # of training
    padding_fraction: float  # of all positions computed
    adapter_bytes: int  # of the saved tensors, head included


class SplitCounts(Settings):
    examples: int  # rows; in older results the windows or choices that are made of them
    tokens: int  # of all windows and choices
    dropped: dict[str, int]  # e.g. truncated sentences and lost entities
    skipped: dict[str, int] = Field(default={})  # rows left out, by reason: bad ones, leaks
    leaks: int | None = None  # of validation and test: examples whose input is in train too


class Curve(Settings):
    """The course of training: one value each evaluation."""

    steps: list[int]
    scores: list[float]  # the selection metric on validation
    losses: list[float]  # mean training loss since the last evaluation, nats a target


class Resume(Settings):
    """That a run went on from a checkpoint."""

    step: int
    processes: int
    differences: list[str]  # of code, libraries and hardware to those before, in words


class MicroBatchReduction(Settings):
    """Memory ran out, and from this step on the same batches were cut into smaller pieces."""

    step: int
    accumulation: int


class RunResult(Settings):
    """One finished run."""

    version: Literal[2] = VERSION
    name: str
    digest: str
    recipe: dict[str, Any]  # resolved
    started: str  # UTC, ISO 8601
    command: list[str]
    metrics: dict[str, dict[str, float]]  # split -> metric -> value
    metric_signatures: dict[str, str] = Field(default={})  # how the libraries counted, of those metrics that say it
    # The same of one answer always, train's mean or most frequent, and of the base before it was tuned.
    constant_baseline: dict[str, dict[str, float]] = Field(default={})
    base_model: dict[str, dict[str, float]] = Field(default={})
    selection: str  # the metric by which the best state was chosen, on validation
    selection_minimized: bool = False  # smaller is better of it
    best_step: int | None
    stopped_early: bool
    curve: Curve
    parameters: Parameters
    unused: list[str] = Field(default=[])  # tensors of a base trained whole that no forward used: frozen
    method_stats: dict[str, Any]
    fidelity: str | None
    cost: Cost
    splits: dict[str, SplitCounts]
    model_source: str
    model_fingerprint: str
    model_code: str | None = None  # the revision of the base's own code, if that ran
    data_source: str
    data_fingerprint: str
    environment: Environment
    resumes: list[Resume] = Field(default=[])
    micro_batch_reductions: list[MicroBatchReduction] = Field(default=[])

    @model_validator(mode="before")
    @classmethod
    def _read_version_1(cls, values: Any) -> Any:
        return upgraded(values) if isinstance(values, dict) and values.get("version") == 1 else values


def write_result(result: RunResult, folder: Path) -> Path:
    """Write result.json: whole or not at all."""
    path = folder / FILE
    atomic_write(path, (result.model_dump_json(indent=2) + "\n").encode())
    return path


def is_finished(folder: Path) -> bool:
    """Whether a run has left its result in `folder`. Raises UserError if that cannot be seen."""
    try:
        return (folder / FILE).exists()
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror}") from None


def read_result(path: Path) -> RunResult:
    """Read a result file, or the one in a folder. Raises UserError with one line."""
    path = path / FILE if path.is_dir() else path
    try:
        return RunResult.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise UserError(f"{path}: not a result of version {VERSION}: {first_error(error)}") from None


def columns_of(run: Path) -> dict[str, str]:
    """The task's field -> the column of the data that the run learnt from; none for a model without its result."""
    try:
        data = read_result(run).recipe["data"]
    except UserError:
        return {}
    return dict(data.get("columns") or {})


def result_folder(output: Path, name: str, digest: str) -> Path:
    """Where a run's files go: a function of the recipe, so that the same run is found again."""
    return output / name / digest


def checkpoint_folder(folder: Path) -> Path:
    """Where the checkpoints of a run are while it is not finished: beside its folder, which is there whole or not."""
    return folder.with_name(f"{folder.name}.checkpoints")


def tracking_folder(folder: Path) -> Path:
    """Where trackers that write files, as TensorBoard does, write those of a run."""
    return folder.with_name(f"{folder.name}.tracking")


def summary(result: RunResult) -> list[tuple[str, str]]:
    """What a person wants to know of a run: labels and texts."""
    cost, parameters = result.cost, result.parameters
    lines = [
        (split, "  ".join(f"{name} {value:.4f}" for name, value in scores.items() if "/" not in name))
        for split, scores in result.metrics.items()
    ]
    for label, baseline, predictor in (
        ("baseline", result.constant_baseline, "when always predicting train's mean or most frequent label"),
        ("base model", result.base_model, "before fine-tuning"),
    ):
        for split, scores in baseline.items():
            if result.selection in scores:
                lines.append((label, f"{split}: {result.selection} {scores[result.selection]:.4f} {predictor}"))
    lines.append(
        (
            "parameters",
            f"{parameters.trainable:,} trainable ({parameters.trainable_fraction:.2%} of {parameters.base:,}): "
            f"{parameters.method:,} {result.recipe['method']['kind']}, {parameters.head:,} head; "
            f"{cost.adapter_bytes / 2**20:.1f} MiB saved",
        )
    )
    lines.append(
        (
            "time",
            f"load {cost.load_seconds:.0f} s, train {cost.train_seconds:.0f} s, "
            f"evaluate {cost.evaluate_seconds:.0f} s; {cost.tokens_per_second:,.0f} tokens/s without padding, "
            f"{cost.padding_fraction:.1%} padding",
        )
    )
    if result.resumes:
        lines.append(("resumed", ", ".join(f"from step {resume.step}" for resume in result.resumes)))
    for split, counts in result.splits.items():
        lost = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.dropped.items() if count)
        if lost:
            lines.append(("dropped", f"{split}: {lost}"))
        if counts.skipped:
            reasons = ", ".join(f"{count} ({reason})" for reason, count in counts.skipped.items())
            lines.append(("skipped", f"rows of {split}: {reasons}"))
        if counts.leaks:
            lines.append(("leaks", f"{counts.leaks:,} of {counts.examples:,} of {split} are in train too"))
    return lines
