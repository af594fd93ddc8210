"""Experiment trackers, through Accelerate: TensorBoard, Weights & Biases and others are told how a run goes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.errors import UserError, nearest
from peftlab.io import redact
from peftlab.recipe import Recipe
from peftlab.results.run_result import RunResult
from peftlab.training.train_log import Evaluation, MicroBatchReduction, Step, TrainLog

if TYPE_CHECKING:
    from accelerate import Accelerator


def settings(trackers: Sequence[str], folder: Path) -> dict[str, Any]:
    """What an Accelerator is to be made with so that these hear of the run; `folder` is for those that write files.

    Raises UserError if there is no such tracker, or its package is not installed.
    """
    if not trackers:
        return {}
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known, here = sorted(map(str, LOGGER_TYPE_TO_CLASS)), {str(tracker) for tracker in get_available_trackers()}
    for tracker in trackers:
        if tracker not in known:
            near = nearest(tracker, known)
            raise UserError(f"--track {tracker}: no such tracker{near}; accelerate knows {', '.join(known)}")
        if tracker not in here:
            raise UserError(f"--track {tracker}: its package is not installed here; pip install {tracker}")
    return {"log_with": list(dict.fromkeys(trackers)), "project_dir": str(folder)}


class Tracking:
    """The observer that tells them. A run's name is their project. One that fails later on does not end the run."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator, say: Callable[[str, str], None]) -> None:
        """`say` shows a label and a text. Raises UserError if a tracker does not begin."""
        self._accelerator = accelerator
        self._say = say
        self._lost = False
        if accelerator.log_with:
            said = redact.redacted(recipe.to_record())
            try:
                accelerator.init_trackers(recipe.name, config={"digest": recipe.digest, **flat(said)})
            except Exception as error:  # each has its own, of networks, accounts and disks
                names = ", ".join(map(str, accelerator.log_with))
                raise UserError(f"--track: {names} could not begin: {_reason(error)}") from None

    def step(self, step: Step, total: int, log: TrainLog) -> None:
        self._tell("train", step.number, loss=step.loss, learning_rate=step.learning_rate, epoch=step.epoch)

    def evaluation(self, evaluation: Evaluation, best: bool) -> None:
        self._tell("validation", evaluation.step, **evaluation.scores)

    def halving(self, halving: MicroBatchReduction) -> None:
        self._tell("train", halving.step, accumulation=halving.accumulation)

    def finished(self, result: RunResult) -> None:
        cost = result.cost
        self._tell("train", cost.optimizer_steps, tokens_per_second=cost.tokens_per_second, seconds=cost.train_seconds)
        self._tell("test", cost.optimizer_steps, **result.metrics.get("test", {}))

    def end(self) -> None:
        """Nothing more comes."""
        with self._survived():
            self._accelerator.end_training()

    def _tell(self, section: str, step: int, **values: float) -> None:
        if not self._lost:
            with self._survived():
                self._accelerator.log({f"{section}/{name}": value for name, value in values.items()}, step=step)

    @contextlib.contextmanager
    def _survived(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self._lost:
                self._say("tracking", f"is told nothing more: {_reason(error)}")
            self._lost = True


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str | float | bool]:
    """One level, as trackers want it.

    >>> flat({"method": {"kind": "lora", "rank": 8, "targets": ["query", "value"]}, "replay": None})
    {'method.kind': 'lora', 'method.rank': 8, 'method.targets': "['query', 'value']", 'replay': 'None'}
    """
    found: dict[str, str | float | bool] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value if isinstance(value, bool | int | float | str) else str(value)
    return found
