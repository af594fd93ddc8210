"""Experiment trackers, through Accelerate: TensorBoard, Weights & Biases and others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.errors import UserError, nearest
from peftlab.io import redact
from peftlab.recipe import Recipe
from peftlab.results.run_result import RunResult
from peftlab.training.callbacks import Callback
from peftlab.training.train_log import Evaluation, MicroBatchReduction, Step, TrainLog

if TYPE_CHECKING:
    from accelerate import Accelerator


def settings(trackers: Sequence[str], folder: Path) -> dict[str, Any]:
    """Arguments for Accelerator that enable these trackers. `folder` is for trackers that write files.

    Raises UserError if there is no such tracker, or its package is not installed.
    """
    if not trackers:
        return {}
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    supported, installed = sorted(map(str, LOGGER_TYPE_TO_CLASS)), set(map(str, get_available_trackers()))
    for tracker in trackers:
        if tracker not in supported:
            near = nearest(tracker, supported)
            raise UserError(f"--track {tracker}: no such tracker{near}; accelerate has {', '.join(supported)}")
        if tracker not in installed:
            raise UserError(f"--track {tracker}: its package is not installed; pip install {tracker}")
    return {"log_with": list(dict.fromkeys(trackers)), "project_dir": str(folder)}


class Tracking(Callback):
    """Logs a run to the trackers. The recipe's name is the project. A tracker that fails later does not end the run."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator, say: Callable[[str, str], None]) -> None:
        """`say` prints a label and a text. Raises UserError if a tracker cannot start."""
        self._accelerator = accelerator
        self._say = say
        self._failed = False
        if accelerator.log_with:
            config = redact.redacted(recipe.to_record())
            try:
                accelerator.init_trackers(recipe.name, config={"digest": recipe.digest, **flat(config)})
            except Exception as error:  # each tracker raises its own, about networks, accounts and disks
                names = ", ".join(map(str, accelerator.log_with))
                raise UserError(f"--track: {names} could not start: {_reason(error)}") from None

    def on_step_end(self, step: Step, total: int, log: TrainLog) -> None:
        self._log("train", step.number, loss=step.loss, learning_rate=step.learning_rate, epoch=step.epoch)

    def on_evaluation(self, evaluation: Evaluation, is_best: bool) -> None:
        loss = {} if evaluation.validation_loss is None else {"loss": evaluation.validation_loss}
        self._log("validation", evaluation.step, **loss, **evaluation.scores)

    def on_micro_batch_reduction(self, reduction: MicroBatchReduction) -> None:
        self._log("train", reduction.step, accumulation=reduction.accumulation)

    def log_result(self, result: RunResult) -> None:
        """Log cost and test scores of the finished run."""
        cost = result.cost
        self._log("train", cost.optimizer_steps, tokens_per_second=cost.tokens_per_second, seconds=cost.train_seconds)
        self._log("test", cost.optimizer_steps, **result.metrics.get("test", {}))

    def end(self) -> None:
        """Close the trackers."""
        with self._tolerated():
            self._accelerator.end_training()

    def _log(self, section: str, step: int, **values: float) -> None:
        if not self._failed:
            with self._tolerated():
                self._accelerator.log({f"{section}/{name}": value for name, value in values.items()}, step=step)

    @contextlib.contextmanager
    def _tolerated(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each tracker raises its own, and none may end a run
            if not self._failed:
                self._say("tracking", f"stopped: {_reason(error)}")
            self._failed = True


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str | float | bool]:
    """Nested values as one level with dotted names, as trackers expect them.

    >>> flat({"method": {"kind": "lora", "rank": 8, "targets": ["query", "value"]}, "replay": None})
    {'method.kind': 'lora', 'method.rank': 8, 'method.targets': "['query', 'value']", 'replay': 'None'}
    """
    flattened: dict[str, str | float | bool] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flattened |= flat(value, f"{prefix}{key}.")
        else:
            flattened[prefix + key] = value if isinstance(value, bool | int | float | str) else str(value)
    return flattened
