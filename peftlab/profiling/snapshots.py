"""Memory of a training step, from snapshots at the ends of its phases. No torch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peftlab.profiling.profile import Memory

SCALARS = 64  # bytes that the loss and other scalars occupy, which count as nothing retained


@dataclass(frozen=True)
class PhaseSnapshot:
    """Memory at the end of a phase, in bytes above what was allocated when the recorder started."""

    phase: str
    live: int
    """Allocated at the end of the phase."""
    peak: int
    """Highest since the previous snapshot."""


@dataclass(frozen=True)
class Step:
    """Memory of one training step, in bytes."""

    rest: int
    """Live before the step."""
    inputs: int
    """The batch."""
    activations: int
    """The most that one forward pass added."""
    after_backward: int
    """Live at the end of the last backward pass, without `rest` and `inputs`."""
    fullest: int
    """The largest live memory at the end of a phase."""
    peak: int
    """The highest memory within the step."""


def read_step(snapshots: Sequence[PhaseSnapshot]) -> Step:
    """The last complete step. A step ends with the phase "optimizer"; before it come inputs, forward and backward.

    >>> phases = ("inputs", "forward", "backward", "optimizer")
    >>> first = [PhaseSnapshot(*values) for values in zip(phases, (1, 9, 4, 5), (1, 9, 12, 6))]
    >>> second = [PhaseSnapshot(*values) for values in zip(phases, (6, 14, 9, 5), (6, 15, 18, 6))]
    >>> read_step([*first, *second])
    Step(rest=5, inputs=1, activations=8, after_backward=3, fullest=14, peak=18)
    """
    ends = [position for position, snapshot in enumerate(snapshots) if snapshot.phase == "optimizer"]
    if len(ends) < 2:
        raise ValueError(f"at least two steps are needed, {len(ends)} were recorded")
    step = snapshots[ends[-2] + 1 : ends[-1] + 1]
    rest = snapshots[ends[-2]].live
    inputs = next(snapshot.live for snapshot in step if snapshot.phase == "inputs") - rest
    activations = max(
        snapshot.live - before.live for before, snapshot in itertools.pairwise(step) if snapshot.phase == "forward"
    )
    backward = [snapshot.live for snapshot in step if snapshot.phase == "backward"][-1]
    return Step(
        rest=rest,
        inputs=inputs,
        activations=activations,
        after_backward=backward - rest - inputs,
        fullest=max(rest, *(snapshot.live for snapshot in step)),
        peak=max(snapshot.peak for snapshot in step),
    )


def memory_of(
    snapshots: Sequence[PhaseSnapshot],
    static: Mapping[str, int],
    *,
    optimizer: int,
    gradients: int,
    best_state: int | None,
    reserved: int | None = None,
    process_peak: int | None = None,
) -> Memory:
    """The memory of the last complete step.

    `static` has the bytes of base, constants, method and head; `optimizer` and `gradients` are the expected bytes of
    the optimizer state and of all gradients.
    """
    step = read_step(snapshots)
    weights = sum(static.values())
    retained = step.after_backward - gradients
    evaluation = [snapshot.peak for snapshot in snapshots if snapshot.phase == "evaluation"]
    return Memory(
        **static,
        optimizer=optimizer,
        persistent=step.rest - optimizer,
        inputs=step.inputs,
        activations=step.activations,
        gradients=gradients,
        retained=retained if abs(retained) > SCALARS else 0,
        transient=step.peak - step.fullest,
        peak=weights + step.peak,
        best_state=best_state,
        evaluation_peak=weights + max(evaluation) if evaluation else None,
        reserved=reserved,
        process_peak=process_peak,
    )
