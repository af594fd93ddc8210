"""Hooks into the training loop, e.g. for a console, an experiment tracker, checkpoints or a profiler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from peftlab.training.state import RngState, TrainState
from peftlab.training.train_log import Evaluation, MicroBatchReduction, Step, TrainLog

Phase = Literal["inputs", "forward", "backward", "optimizer"]
"""Phases of a step, in this order. Each micro-batch has a forward and a backward of its own."""


class Callback:
    """Base class of the loop's callbacks. Each hook does nothing unless a subclass overrides it.

    Every process of a distributed run calls every hook, in the same order, so a hook may use collective calls.
    """

    def on_train_begin(self, state: TrainState) -> None:
        """Called once before the first step. To resume, restore a snapshot into `state` here."""

    def on_phase_end(self, phase: Phase) -> None:
        """Called at the end of each phase of each step, before the memory that the phase allocated is freed."""

    def on_gradients(self, state: TrainState) -> None:
        """Called after the last backward pass of a step, before clipping and the update."""

    def on_step_end(self, step: Step, total: int, log: TrainLog) -> None:
        """Called after each optimizer step. `total` is the number of steps planned."""

    def on_evaluation(self, evaluation: Evaluation, is_best: bool) -> None:
        """Called after each evaluation on the validation split."""

    def on_micro_batch_reduction(self, reduction: MicroBatchReduction) -> None:
        """Called when a step ran out of memory and is retried in smaller micro-batches."""

    def request(self, step: int) -> tuple[bool, bool]:
        """Two flags: save the state after this step, and stop. A request of one process holds for all."""
        return False, False

    def on_save(self, rng: RngState | None = None) -> str:
        """Called if a process requested it, and before an error ends the training. A collective call.

        `rng`: the RNG state to save in place of the current one. Returns a clause for the error's message, which says
        what was saved, or "".
        """
        return ""

    def on_interrupt(self) -> None:
        """Called if a process requested to stop. Saves what must not be lost and raises `Interrupted`."""

    def on_train_end(self, log: TrainLog) -> None:
        """Called once after the last step. The model is in its final state, in evaluation mode."""


class CallbackList(Callback):
    """Calls several callbacks one after the other."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = callbacks

    def on_train_begin(self, state: TrainState) -> None:
        for callback in self._callbacks:
            callback.on_train_begin(state)

    def on_phase_end(self, phase: Phase) -> None:
        for callback in self._callbacks:
            callback.on_phase_end(phase)

    def on_gradients(self, state: TrainState) -> None:
        for callback in self._callbacks:
            callback.on_gradients(state)

    def on_step_end(self, step: Step, total: int, log: TrainLog) -> None:
        for callback in self._callbacks:
            callback.on_step_end(step, total, log)

    def on_evaluation(self, evaluation: Evaluation, is_best: bool) -> None:
        for callback in self._callbacks:
            callback.on_evaluation(evaluation, is_best)

    def on_micro_batch_reduction(self, reduction: MicroBatchReduction) -> None:
        for callback in self._callbacks:
            callback.on_micro_batch_reduction(reduction)

    def request(self, step: int) -> tuple[bool, bool]:
        requests = [callback.request(step) for callback in self._callbacks]
        return any(save for save, _ in requests), any(stop for _, stop in requests)

    def on_save(self, rng: RngState | None = None) -> str:
        return "".join(callback.on_save(rng) for callback in self._callbacks)

    def on_interrupt(self) -> None:
        for callback in self._callbacks:
            callback.on_interrupt()

    def on_train_end(self, log: TrainLog) -> None:
        for callback in self._callbacks:
            callback.on_train_end(log)
