"""Saves checkpoints during training: on a schedule, on a signal, and before an error ends the run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from peftlab.training.callbacks import Callback
from peftlab.training.checkpointing import Checkpoints
from peftlab.training.interruption import Interrupted, received_signal
from peftlab.training.settings import CheckpointPolicy
from peftlab.training.state import RngState, Snapshot, TrainState

if TYPE_CHECKING:
    from accelerate import Accelerator


class CheckpointCallback(Callback):
    """Saves checkpoints to disk and restores one; the main process writes."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        policy: CheckpointPolicy,
        accelerator: Accelerator,
        *,
        run_values: Callable[[], dict[str, Any]],
        say: Callable[[str, str], None],
        resume_from: Snapshot | None = None,
    ) -> None:
        """`run_values` returns JSON values that the run adds to each checkpoint; `say` prints a label and a text."""
        self._checkpoints = checkpoints
        self._policy = policy
        self._accelerator = accelerator
        self._run_values = run_values
        self._say = say
        self._resume_from = resume_from
        self._state: TrainState | None = None
        self._last_save = time.monotonic()
        self._newest = ""  # "step 12", the newest state that can be resumed

    def on_train_begin(self, state: TrainState) -> None:
        if self._resume_from is not None:
            state.restore(self._resume_from)
            self._resume_from = None  # its tensors are not needed any more
        self._state = state
        self._last_save = time.monotonic()
        if state.log.steps:
            self._newest = f"step {len(state.log.steps)}"

    def request(self, step: int) -> tuple[bool, bool]:
        policy = self._policy
        by_time = policy.minutes is not None and time.monotonic() - self._last_save >= 60 * policy.minutes
        by_step = policy.steps is not None and step % policy.steps == 0
        return by_time or by_step, received_signal() is not None

    def on_save(self, rng: RngState | None = None) -> str:
        if self._state is None:
            return ""
        snapshot = self._state.snapshot(rng)
        self._last_save = time.monotonic()
        if not self._accelerator.is_main_process:
            return ""
        try:
            values = {**snapshot.values, "run": self._run_values()}
            path = self._checkpoints.save(Snapshot(snapshot.step, snapshot.tensors, values))
        except OSError as error:  # a run does not end because a checkpoint cannot be written
            self._say("checkpoint", f"step {snapshot.step} could not be saved: {error.strerror}")
            return f"step {snapshot.step} could not be saved ({error.strerror}); {self._newest_text()}"
        self._newest = f"step {snapshot.step}"
        return f"the state after step {snapshot.step} is saved in {path}; "

    def on_interrupt(self) -> None:
        self.on_save()
        self._accelerator.wait_for_everyone()
        raise Interrupted(received_signal() or 15, self._newest_text().removesuffix("; "))

    def _newest_text(self) -> str:
        return f"{self._newest} is saved, --resume continues from it; " if self._newest else "nothing was saved; "
