"""When the states of a run are kept, and what becomes of it when it is told to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from peftlab.training.checkpointing import Checkpoints
from peftlab.training.interruption import Interrupted, asked
from peftlab.training.settings import CheckpointPolicy
from peftlab.training.state import Callback, RngState, Snapshot, TrainState

if TYPE_CHECKING:
    from accelerate import Accelerator


class CheckpointCallback(Callback):
    """Keeps checkpoints on disk; the first process writes."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        keeping: CheckpointPolicy,
        accelerator: Accelerator,
        *,
        more: Callable[[], dict[str, Any]],
        say: Callable[[str, str], None],
    ) -> None:
        """`more` is what the run wants kept beside the training's state, JSON; `say` shows a label and a text."""
        self._checkpoints = checkpoints
        self._keeping = keeping
        self._accelerator = accelerator
        self._more = more
        self._say = say
        self._progress: TrainState | None = None
        self._last = time.monotonic()
        self._newest = ""  # what can be gone on from, in words

    def watch(self, progress: TrainState) -> None:
        self._progress = progress
        self._last = time.monotonic()
        if progress.log.steps:
            self._newest = f"step {len(progress.log.steps)}"

    def wanted(self, step: int) -> tuple[bool, bool]:
        every = self._keeping
        by_time = every.minutes is not None and time.monotonic() - self._last >= 60 * every.minutes
        return by_time or (every.steps is not None and step % every.steps == 0), asked() is not None

    def keep(self, generators: RngState | None = None) -> str:
        if self._progress is None:
            return ""
        snapshot = self._progress.snapshot(generators)
        self._last = time.monotonic()
        if self._accelerator.is_main_process:
            try:
                whole = Snapshot(snapshot.step, snapshot.tensors, {**snapshot.values, "run": self._more()})
                path = self._checkpoints.save(whole)
            except OSError as error:  # a run does not end because its insurance fails
                self._say("checkpoint", f"step {snapshot.step} could not be kept: {error.strerror}")
                return f"step {snapshot.step} could not be kept ({error.strerror}); " + self._newest_in_words()
            self._newest = f"step {snapshot.step}"
            return f"the state after step {snapshot.step} is kept in {path}; "
        return ""

    def stop(self) -> None:
        self.keep()
        self._accelerator.wait_for_everyone()
        raise Interrupted(asked() or 15, self._newest_in_words().removesuffix("; "))

    def _newest_in_words(self) -> str:
        return f"{self._newest} is kept, --resume goes on from it; " if self._newest else "nothing was kept; "
