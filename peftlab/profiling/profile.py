"""A profile: bytes, FLOPs and seconds of a recipe's training step. Read without torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from peftlab.component import Precision, Settings
from peftlab.results.reach import Reach
from peftlab.results.run_result import Environment
from peftlab.results.version_1 import upgraded

MIB = 2**20
VERSION: Literal[2] = 2

RENAMED = {
    "memory.kept": "memory.persistent",
    "memory.held": "memory.retained",
    "times.matrix_rate": "times.matmul_flops_per_second",
    "times.rate_share": "times.matmul_fraction",
    "times.processor_share": "times.processor_fraction",
}
"""Names of version 1."""


class Memory(Settings):
    """Memory of the device in a steady-state training step, in bytes by what occupies it.

    peak = base + constants + method + head + optimizer + persistent + inputs + transient + the larger of activations
    and (gradients + retained), unless gradients and activations coexist, as with accumulation.
    """

    base: int
    """Parameters and buffers of the base model as they are stored, an untrained copy of the head included."""
    constants: int
    """Quantization constants: scales, offsets and code books."""
    method: int
    """Parameters, buffers and copies that the method adds."""
    head: int
    """The task's trainable head."""
    optimizer: int
    """Optimizer state."""
    persistent: int
    """Everything else that stays allocated from step to step."""
    inputs: int
    """The batch."""
    activations: int
    """Live at the end of a forward pass for the backward pass, the outputs included."""
    gradients: int
    """Gradients of the trainable tensors."""
    retained: int
    """Live at the end of the backward pass in addition to the gradients: memory that should have been freed."""
    transient: int
    """Amount by which the peak exceeds the largest memory at the end of a phase."""
    peak: int
    """Highest memory within a step."""
    best_state: int | None
    """Copy of the trained tensors, from the first evaluation on; null if none is kept."""
    evaluation_peak: int | None
    """Peak of a pass over the same batch without gradients."""
    reserved: int | None
    """Reserved by the device's allocator; null on a CPU."""
    process_peak: int | None
    """Peak resident memory of the process, libraries included."""

    @property
    def weights(self) -> int:
        """Bytes of the model itself."""
        return self.base + self.constants + self.method + self.head

    @property
    def at_peak(self) -> dict[str, int]:
        """Parts of the peak, from the bottom of a stacked bar to its top; they add up to the peak."""
        rest = self.persistent + self.inputs
        return {
            "base weights": self.base,
            "quantization constants": self.constants,
            "method and head": self.method + self.head,
            "optimizer": self.optimizer,
            "activations or gradients": self.peak - self.weights - self.optimizer - rest - self.transient,
            "transient": self.transient,
            "batch and other": rest,
        }


class Flops(Settings):
    """Floating-point operations of the matrix products per padded token; a multiply-add counts as two."""

    forward: float
    """FLOPs of the forward pass."""
    backward: float
    """FLOPs of the backward pass."""

    @property
    def ratio(self) -> float:
        """FLOPs of a step divided by those of its forward pass.

        3 for full fine-tuning; 2 is the lower limit of a method that trains parameters in every layer.
        """
        return (self.forward + self.backward) / self.forward


class Times(Settings):
    """Wall-clock seconds of training steps on the fixed batch."""

    steps: int
    """Number of timed steps, after the warm-up."""
    median: float
    """Median seconds per step."""
    quartiles: tuple[float, float] = Field(strict=False)  # a JSON list, as the validator of version 1 passes it on
    """First and third quartile, in seconds per step."""
    tokens_per_second: float
    """Tokens of the batch divided by the median."""
    matmul_flops_per_second: float
    """FLOP/s of a large matrix product on this machine, in the recipe's precision."""
    matmul_fraction: float
    """FLOP/s of a step as a fraction of `matmul_flops_per_second`."""
    processor_fraction: float | None = None
    """Fraction of the timed pass in which its one thread had a processor; below 1, other processes took it.

    Null on a GPU and with several threads.
    """


class Inference(Settings):
    """Wall-clock seconds of a forward pass over the fixed batch without gradients."""

    unmerged: float
    """As trained."""
    merged: float | None
    """Merged into the base model; null if the method or the quantization cannot be merged."""
    base: float | None
    """With the method disabled; null if it cannot be disabled."""
    merge_error: float | None
    """Largest absolute change of an output by merging; null if not merged."""


class Profile(Settings):
    """Cost of a recipe's training step on one machine."""

    version: Literal[2] = VERSION
    """Format version. Files of version 1 are read too."""
    name: str
    """Name of the recipe."""
    digest: str
    """Digest of the recipe."""
    examples: int
    """Examples of the fixed batch, none padded."""
    length: int
    """Tokens of each example."""
    memory: Memory
    """Bytes by what occupies them."""
    flops: Flops
    """Floating-point operations per token."""
    times: Times | None
    """Seconds per step; null if not timed."""
    inference: Inference | None
    """Seconds per forward pass; null if not timed."""
    environment: Environment
    """Code, libraries and hardware."""

    @model_validator(mode="before")
    @classmethod
    def _read_version_1(cls, values: Any) -> Any:
        return upgraded(values, RENAMED) if isinstance(values, dict) and values.get("version") == 1 else values


class MemoryEstimate(Settings):
    """Estimated memory of a device in a training step, for one quantization of the base model. Nothing is run."""

    quantization: str
    """Kind of the quantization."""
    unsupported: str | None = None
    """Reason why there is no estimate."""
    memory: Memory | None = None
    """Estimated bytes; null if unsupported."""
    needed: int | None = None
    """Bytes needed for training: the peak, the best state and, with several copies, the gradient buckets."""
    at_least: bool = False
    """The estimate is for two examples of the batch, which already exceed the limit."""
    fits: bool | None = None
    """`needed` is within the limit; null without a limit."""
    reach: Reach | None = None
    """What the method adapts and the quantization packs of the base model."""
    reach_sentences: list[str] = Field(default=[])
    """The same in words, with warnings and remedies."""
    precision: Precision | None = None
    """Precision of the computation."""
    examples: int | None = None
    """Examples per step, on all devices."""
    length: int | None = None
    """Tokens per example."""
    accumulation: int | None = None
    """Micro-batches per step."""
    micro_batch: int | None = None
    """Examples of one device's forward pass."""
    devices: int = 1
    """Number of devices."""
    sharded: bool = False
    """Each device holds a shard of the model, not a copy."""
