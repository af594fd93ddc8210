"""The ledger of a recipe: bytes, operations and seconds of one training step, phase by phase. Read without torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from peftlab.component import Precision, Settings
from peftlab.results.run_result import Environment

MIB = 2**20
SCALARS = 64  # bytes: the loss and its like, which is nothing held


class Memory(Settings):
    """Bytes, by what holds them: all that is on the device in a steady-state training step.

    peak = base + constants + method + head + optimizer + kept + inputs + the larger of activations and gradients with
    held + transient, where accumulation does not make gradients and activations meet.
    """

    base: int  # the base's parameters and buffers as they are stored, an untrained copy of the head included
    constants: int  # of the quantisation: scales, offsets, code books
    method: int  # the method's own parameters, buffers and copies
    head: int  # the task's head, as it trains
    optimizer: int
    kept: int  # what else training keeps from step to step
    inputs: int  # the batch
    activations: int  # live at the end of a forward pass for the backward pass, the outputs included
    gradients: int  # of the trainable tensors
    held: int  # live at the end of the backward pass beside the gradients: something is kept that should not be
    transient: int  # what the peak holds beyond the fullest end of a phase
    peak: int
    best_state: int | None  # a copy of the trained tensors, from the first evaluation on; None if none is kept
    evaluation_peak: int | None  # of a pass without gradients over the same batch
    reserved: int | None  # by the device's allocator; a CPU has none
    process_peak: int | None  # the process's high-water mark, libraries and all

    @property
    def weights(self) -> int:
        """Everything of the model itself."""
        return self.base + self.constants + self.method + self.head

    @property
    def at_peak(self) -> dict[str, int]:
        """What the peak is made of, from the bottom up; it all comes to the peak."""
        rest = self.kept + self.inputs
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
    """Floating-point operations of the matrix products, two a multiply-add, for one padded token."""

    forward: float
    backward: float

    @property
    def ratio(self) -> float:
        """A step in forward passes: 3 is full fine-tuning, 2 the limit of what trains something in every layer."""
        return (self.forward + self.backward) / self.forward


class Times(Settings):
    """Wall seconds of steps on the fixed batch, in a pass of their own."""

    steps: int  # timed, after the warm-up
    median: float  # seconds a step
    quartiles: tuple[float, float] = Field(strict=False)  # a JSON list, which validators of version 1 pass on
    tokens_per_second: float
    matrix_rate: float  # operations a second of a large matrix product on this machine, in the recipe's precision
    rate_share: float  # of the matrix rate
    processor_share: float | None = None  # of the pass that its one thread had a processor: below 1 others took it


class Inference(Settings):
    """Seconds of a forward pass over the fixed batch without gradients."""

    unmerged: float
    merged: float | None  # None where the method cannot be merged, or not into this base
    base: float | None  # None where the method cannot be switched off
    merge_error: float | None  # the largest change of an output


class Profile(Settings):
    """What a recipe costs on one machine."""

    version: int = 1
    name: str
    digest: str  # the recipe's
    examples: int  # of the fixed batch, none padded
    length: int  # tokens of each
    memory: Memory
    flops: Flops
    times: Times | None
    inference: Inference | None
    environment: Environment


class MemoryEstimate(Settings):
    """What a device would hold of a recipe's step over one quantisation of its base; shapes say so, nothing was run."""

    quantization: str  # kind
    unsupported: str | None = None  # why there is no forecast
    memory: Memory | None = None
    needed: int | None = None  # the peak, and what comes to it later or on several devices
    at_least: bool = False  # of two examples of the batch, which are too much already
    fits: bool | None = None  # None if no limit was given
    precision: Precision | None = None
    examples: int | None = None  # of a step, on all devices
    length: int | None = None
    accumulation: int | None = None
    micro_batch: int | None = None  # examples of a device's forward pass
    devices: int = 1
    sharded: bool = False  # a share of the model on each device, not a copy


@dataclass(frozen=True)
class PhaseSnapshot:
    """What a recorder knows at the end of a phase, in bytes above what was there when it began."""

    phase: str
    live: int
    peak: int  # since the mark before


@dataclass(frozen=True)
class Step:
    """A step's marks, added up."""

    rest: int  # live before it
    inputs: int
    activations: int
    after_backward: int  # live beside rest and inputs
    fullest: int  # live at the fullest mark
    peak: int


def read_step(marks: Sequence[PhaseSnapshot]) -> Step:
    """The last complete step. Each ends with the mark "optimizer"; before it come inputs, forward, backward.

    >>> phases = ("inputs", "forward", "backward", "optimizer")
    >>> first = [PhaseSnapshot(*values) for values in zip(phases, (1, 9, 4, 5), (1, 9, 12, 6))]
    >>> second = [PhaseSnapshot(*values) for values in zip(phases, (6, 14, 9, 5), (6, 15, 18, 6))]
    >>> read_step([*first, *second])
    Step(rest=5, inputs=1, activations=8, after_backward=3, fullest=14, peak=18)
    """
    ends = [position for position, mark in enumerate(marks) if mark.phase == "optimizer"]
    if len(ends) < 2:
        raise ValueError(f"two steps at least are needed, {len(ends)} were recorded")
    step = marks[ends[-2] + 1 : ends[-1] + 1]
    rest = marks[ends[-2]].live
    inputs = next(mark.live for mark in step if mark.phase == "inputs") - rest
    activations = max(mark.live - before.live for before, mark in itertools.pairwise(step) if mark.phase == "forward")
    backward = [mark.live for mark in step if mark.phase == "backward"][-1]
    return Step(
        rest=rest,
        inputs=inputs,
        activations=activations,
        after_backward=backward - rest - inputs,
        fullest=max(rest, *(mark.live for mark in step)),
        peak=max(mark.peak for mark in step),
    )


def memory_of(
    marks: Sequence[PhaseSnapshot],
    static: Mapping[str, int],
    *,
    optimizer: int,
    gradients: int,
    best_state: int | None,
    reserved: int | None = None,
    process_peak: int | None = None,
) -> Memory:
    """`static` are bytes by base, constants, method and head; `optimizer` and `gradients` what they must come to."""
    step = read_step(marks)
    weights = sum(static.values())
    held = step.after_backward - gradients
    evaluation = [mark.peak for mark in marks if mark.phase == "evaluation"]
    return Memory(
        **static,
        optimizer=optimizer,
        kept=step.rest - optimizer,
        inputs=step.inputs,
        activations=step.activations,
        gradients=gradients,
        held=held if abs(held) > SCALARS else 0,
        transient=step.peak - step.fullest,
        peak=weights + step.peak,
        best_state=best_state,
        evaluation_peak=weights + max(evaluation) if evaluation else None,
        reserved=reserved,
        process_peak=process_peak,
    )


def lines(ledger: Profile) -> list[tuple[str, str]]:
    """What a person wants to know of it: labels and texts."""
    memory, flops = ledger.memory, ledger.flops
    found = [("batch", f"{ledger.examples} x {ledger.length} tokens, {ledger.environment.precision}")]
    found += memory_lines(memory)
    found.append(
        (
            "operations",
            f"forward {flops.forward:.3g}, backward {flops.backward:.3g} a token: {flops.ratio:.2f} forward passes",
        )
    )
    if ledger.times is not None:
        times = ledger.times
        found.append(
            (
                "step",
                f"{times.median:.3f} s, quartiles {times.quartiles[0]:.3f} to {times.quartiles[1]:.3f} of "
                f"{times.steps}; {times.tokens_per_second:,.0f} tokens/s; {times.rate_share:.0%} of the "
                f"{times.matrix_rate / 1e9:,.0f} GFLOP/s of a matrix product",
            )
        )
    if ledger.inference is not None:
        inference = ledger.inference
        texts = [
            f"{name} {value:.3f} s"
            for name in ("unmerged", "merged", "base")
            if (value := getattr(inference, name)) is not None
        ]
        if inference.merge_error is not None:
            texts.append(f"merging moves an output by {inference.merge_error:.1e}")
        found.append(("inference", ", ".join(texts)))
    return found


def memory_lines(memory: Memory) -> list[tuple[str, str]]:
    """Bytes in MiB, one line each; what is nothing or unknown is left out."""
    names = {
        "base": "base weights",
        "constants": "constants",
        "method": "method",
        "head": "head",
        "optimizer": "optimiser",
        "kept": "kept",
        "inputs": "inputs",
        "activations": "activations",
        "gradients": "gradients",
        "held": "held",
        "transient": "transient",
        "peak": "peak",
        "best_state": "best state",
        "evaluation_peak": "evaluation",
        "reserved": "reserved",
        "process_peak": "process",
    }
    return [
        (label, f"{value / MIB:,.2f} MiB")
        for name, label in names.items()
        if (value := getattr(memory, name)) is not None and (value or name == "peak")
    ]


def quantile(values: Sequence[float], share: float) -> float:
    """Linear between the two nearest values.

    >>> quantile([4.0, 1.0, 2.0, 3.0], 0.5)
    2.5
    """
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
