"""Record of a finished run: the content of result.json, readable without torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from peftlab.component import Precision, Settings
from peftlab.results.reach import Reach
from peftlab.results.version_1 import upgraded

VERSION: Literal[2] = 2


class Code(Settings):
    """The checkout that peftlab ran from; all None for an installed package."""

    commit: str | None
    modified: bool | None
    """True if there were uncommitted changes under peftlab/."""


class Hardware(Settings):
    """The machine."""

    processor: str
    cores: int
    threads: int
    """CPU threads of torch."""
    memory_bytes: int | None
    accelerators: list[str]
    """Names of the GPUs that the process could see; empty for a run on the CPU."""
    driver: str | None
    """Newest CUDA version that the GPU driver supports, e.g. 13.0."""


class Environment(Settings):
    """Everything around the recipe that may change a number."""

    code: Code
    python: str
    libraries: dict[str, str]
    hardware: Hardware
    device: str
    precision: Precision
    attention: str | None = None
    """transformers' name of the attention kernel, e.g. sdpa; None: not recorded, or the model has no choice."""
    processes: int
    sharded: bool = False
    """True if each process held a shard of the model (FSDP2, ZeRO-3) rather than a copy."""
    zero: int | None = None
    """DeepSpeed's ZeRO stage, if DeepSpeed was used."""
    device_map: str | None = None
    """Device map by which one process spread the layers over several GPUs."""

    @property
    def placement(self) -> str:
        """Description of how the model was placed; "" for one process with the full model on one device."""
        if self.device_map is not None:
            return f"layers on several GPUs ({self.device_map})"
        words = [f"{self.processes} processes"] if self.processes > 1 else []
        if self.zero is not None:
            words.append(f"under ZeRO-{self.zero}")
        if self.sharded:
            words.append("with a shard of the model each")
        return " ".join(words)


class Parameters(Settings):
    """Numbers of parameters; a packed 4-bit weight counts as the weights that it holds."""

    method: int
    """Trainable parameters of the method, added or part of the base model, without the task head."""
    head: int
    """Trainable parameters of the task head."""
    trainable: int
    base: int
    """Parameters of the base model and its head, before the method is attached."""
    trainable_fraction: float
    """trainable / base."""
    outside_text: int | None = None
    """Those of `base` in the vision and audio towers and projectors of a multimodal model: left as they are."""


class Cost(Settings):
    """Wall-clock seconds by phase, which do not overlap; tokens and bytes."""

    load_seconds: float
    """Data, tokenizer, base model and method."""
    train_seconds: float
    evaluate_seconds: float
    """Validation during training, then the test split."""
    optimizer_steps: int
    tokens: int
    """Tokens trained on, without padding; source and target of an encoder-decoder."""
    tokens_per_second: float
    """During training."""
    padding_fraction: float
    """Padding as a fraction of all positions computed."""
    adapter_bytes: int
    """Size of the saved tensors, task head included."""


class SplitCounts(Settings):
    """Sizes of a split."""

    examples: int
    """Rows; in early results the windows or choices made of them."""
    tokens: int
    """Tokens of all windows and choices."""
    dropped: dict[str, int]
    """Counts of what truncation lost, by name, e.g. truncated sentences and lost entities."""
    skipped: dict[str, int] = Field(default={})
    """Rows left out, by reason: bad rows, leaks."""
    leaks: int | None = None
    """Validation and test: examples whose input also occurs in train."""


class Curve(Settings):
    """Progress of the training: one value per evaluation."""

    steps: list[int]
    scores: list[float]
    """Selection metric on the validation split."""
    losses: list[float]
    """Mean training loss since the previous evaluation, in nats per target."""
    validation_losses: list[float | None] = Field(default=[])
    """Loss of the validation split, in nats per target; null or empty where it was not computed."""


class Resume(Settings):
    """A continuation of the run from a checkpoint."""

    step: int
    processes: int
    differences: list[str]
    """Differences of code, libraries and hardware from those before, as text."""


class InitialAdapter(Settings):
    """The saved adapter that a run started from; its identity does not depend on where it was stored."""

    name: str | None
    """Name of the run that trained it; None if only its adapter folder was there."""
    recipe_digest: str
    fingerprint: str
    """SHA-256 of its tensors and its method."""
    task: str
    """Kind of the task that it was trained for."""
    quantization: str
    """Kind of the quantization of the base that it was trained over."""
    head: bool | None = None
    """True if its task head was trained further, False if the head was new; None for a task without a new head."""
    init_from: InitialAdapter | None = None
    """The adapter that it had started from itself."""


class MicroBatchReduction(Settings):
    """From this step on the same batches were cut into more micro-batches, because memory ran out."""

    step: int
    accumulation: int


class RunResult(Settings):
    """One finished run."""

    version: Literal[2] = VERSION
    name: str
    digest: str
    recipe: dict[str, Any]
    """The resolved recipe, as `Recipe.to_record` returns it."""
    started: str
    """UTC, ISO 8601."""
    command: list[str]
    metrics: dict[str, dict[str, float]]
    """Split -> metric -> value."""
    metric_signatures: dict[str, str] = Field(default={})
    """How the metrics' libraries computed, for metrics that report it."""
    constant_baseline: dict[str, dict[str, float]] = Field(default={})
    """Scores, as in `metrics`, of predicting train's mean or most frequent label, or of copying the source."""
    base_model: dict[str, dict[str, float]] = Field(default={})
    """Scores, as in `metrics`, of the base model before fine-tuning."""
    selection: str
    """Metric by which the best checkpoint was selected, on the validation split."""
    selection_minimized: bool = False
    """True if smaller values of it are better."""
    best_step: int | None
    stopped_early: bool
    curve: Curve
    parameters: Parameters
    reach: Reach | None = None
    """What the method adapts and the quantization packs of the base model."""
    unused: list[str] = Field(default=[])
    """Parameters that full fine-tuning froze because no forward pass used them."""
    method_stats: dict[str, Any]
    """Statistics that the method reports after training."""
    fidelity: str | None
    """How the method differs from its publication."""
    cost: Cost
    splits: dict[str, SplitCounts]
    model_source: str
    model_fingerprint: str
    model_code: str | None = None
    """Revision of the base model's own code, if that ran."""
    data_source: str
    data_fingerprint: str
    environment: Environment
    resumes: list[Resume] = Field(default=[])
    micro_batch_reductions: list[MicroBatchReduction] = Field(default=[])
    init_from: InitialAdapter | None = None
    """The adapter that the training started from, instead of new initial values."""

    @model_validator(mode="before")
    @classmethod
    def _read_version_1(cls, values: Any) -> Any:
        return upgraded(values) if isinstance(values, dict) and values.get("version") == 1 else values
