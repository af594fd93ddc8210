"""Where a training stands: all that changes while it runs, as tensors and JSON, and put back to the bit."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from peftlab.distributed.dispatch import devices
from peftlab.distributed.fsdp import full_tensor, local_shard, shard_like
from peftlab.distributed.optimizer_step import OptimizerStep
from peftlab.errors import UserError
from peftlab.methods.method import Method
from peftlab.training.gradient_checks import GradientStats
from peftlab.training.train_log import Evaluation, MicroBatchReduction, Step, TrainLog

if TYPE_CHECKING:
    from accelerate import Accelerator

NUMBERS = {"epoch": torch.float64, "loss": torch.float64, "learning_rate": torch.float64,
           "tokens": torch.int64, "seconds": torch.float64}  # fmt: skip  # of a step


@dataclass(frozen=True)
class Snapshot:
    """A training after `step` optimiser steps."""

    step: int
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]  # JSON


@dataclass(frozen=True)
class RngState:
    """The states of a process's generators."""

    cpu: Tensor
    cuda: Mapping[int, Tensor]  # by the GPU's number, of those that the model is on
    numpy: Any
    python: Any

    @classmethod
    def now(cls, model: torch.nn.Module) -> RngState:
        """Those that are drawn from while `model` trains."""
        gpus = [device.index for device in devices(model) if device.type == "cuda"]
        cuda = {index: torch.cuda.get_rng_state(index) for index in gpus}
        return cls(torch.get_rng_state(), cuda, np.random.get_state(), random.getstate())

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        for index, state in self.cuda.items():
            torch.cuda.set_rng_state(state, index)
        np.random.set_state(self.numpy)
        random.setstate(self.python)

    def tensors(self) -> dict[str, Tensor]:
        _, keys, position, has_gauss, gauss = self.numpy
        version, state, next_gauss = self.python
        found = {
            "cpu": self.cpu,
            "numpy": torch.tensor([*keys.tolist(), position, has_gauss]),
            "numpy_gauss": torch.tensor([gauss], dtype=torch.float64),
            "python": torch.tensor([version, *state]),
            "python_gauss": torch.tensor([] if next_gauss is None else [next_gauss], dtype=torch.float64),
        }
        return found | {f"cuda.{index}": state for index, state in self.cuda.items()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> RngState:
        *keys, position, has_gauss = tensors["numpy"].tolist()
        version, *state = tensors["python"].tolist()
        numpy = ("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, float(tensors["numpy_gauss"][0]))
        gauss = tensors["python_gauss"].tolist()
        cuda = {int(name[5:]): state for name, state in tensors.items() if name.startswith("cuda.")}
        return cls(tensors["cpu"], cuda, numpy, (version, tuple(state), gauss[0] if gauss else None))


@dataclass
class TrainState:
    """The parts of a training that change. Not the base, which is loaded and wrapped anew from the same seed."""

    model: torch.nn.Module
    method: Method
    update: OptimizerStep
    schedule: torch.optim.lr_scheduler.LRScheduler
    accelerator: Accelerator
    accumulation: int
    log: TrainLog = field(default_factory=TrainLog)
    best: dict[str, Tensor] | None = None  # trained parameters at the best evaluation so far
    alive: GradientStats | None = None
    trained: dict[str, torch.nn.Parameter] = field(init=False)  # by name; of all of them, used or not

    def __post_init__(self) -> None:
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def snapshot(self, generators: RngState | None = None) -> Snapshot:
        """As it is now, or was when the generators were such. A meeting: each process has generators of its own."""
        mine = (generators or RngState.now(self.model)).tensors()
        every = [mine]
        if self.accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            every = gather_object([mine])
        log, method = self.log, self.method.state(self.model)
        # What is in shares is gathered a tensor at a time: no device need have room for all of it.
        groups = {
            "weights": {name: full_tensor(p).detach().cpu() for name, p in self.trained.items()},
            "best": {name: full_tensor(best, self.trained[name]).cpu() for name, best in (self.best or {}).items()},
            "optimizer": self.update.state(),
            "method": {name: value for name, value in method.items() if isinstance(value, Tensor)},
            "signs": dict(self.alive.samples) if self.alive else {},
            "steps": {
                name: torch.tensor([getattr(step, name) for step in log.steps], dtype=dtype)
                for name, dtype in NUMBERS.items()
            },
            **{f"generators.{rank}": tensors for rank, tensors in enumerate(every)},
        }
        rest = {f.name: getattr(log, f.name) for f in dataclasses.fields(log) if f.name not in LISTS}
        values = {
            "log": {
                **rest,
                "evaluations": [dataclasses.asdict(look) for look in log.evaluations],
                "halvings": [dataclasses.asdict(halving) for halving in log.halvings],
            },
            "method": {name: value for name, value in method.items() if not isinstance(value, Tensor)},
            "schedule": {name: value for name, value in self.schedule.state_dict().items() if name != "lr_lambdas"},
            "learning_rates": [group["lr"] for group in self.update.optimizer.param_groups],
            "signs": None if self.alive is None else {
                "count": self.alive.count, "missing": self.alive.missing, "zero": self.alive.zero
            },
            "accumulation": self.accumulation,
        }  # fmt: skip
        tensors = {
            f"{group}.{name}": tensor.detach().cpu().contiguous()
            for group, named in groups.items()
            for name, tensor in named.items()
        }
        return Snapshot(len(log.steps), tensors, values)

    def restore(self, snapshot: Snapshot) -> None:
        """Put back what `snapshot` gave, on a model wrapped as that one was. Raises UserError if it does not fit."""
        try:
            self._restore(snapshot)
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(
                f"--resume: the checkpoint of step {snapshot.step} does not fit this run: {reason}"
            ) from None

    def _restore(self, snapshot: Snapshot) -> None:
        values, accelerator = snapshot.values, self.accelerator
        weights = _group(snapshot, "weights")
        parameters = self.trained
        with torch.no_grad():
            for name, parameter in parameters.items():
                local_shard(parameter).copy_(shard_like(weights.pop(name), parameter))
        if weights:
            raise ValueError(f"this run trains no {next(iter(weights))}")
        self.update.load_state(_group(snapshot, "optimizer"))
        for group, rate in zip(self.update.optimizer.param_groups, values["learning_rates"], strict=True):
            group["lr"] = rate
        self.schedule.load_state_dict({**values["schedule"], "lr_lambdas": [None] * len(values["learning_rates"])})
        self.method.load_state(self.model, {**_group(snapshot, "method"), **values["method"]})
        best = _group(snapshot, "best")
        self.best = {
            name: shard_like(tensor.to(parameters[name].device), parameters[name]) for name, tensor in best.items()
        } or None
        signs = values["signs"]
        if signs is not None:
            samples = {n: tensor.to(parameters[n].device) for n, tensor in _group(snapshot, "signs").items()}
            self.alive = GradientStats(signs["count"], tuple(signs["missing"]), tuple(signs["zero"]), samples)
        self.accumulation = values["accumulation"]
        columns = [_group(snapshot, "steps")[name].tolist() for name in NUMBERS]
        self.log = TrainLog(
            **{
                **values["log"],
                "steps": [Step(number, *row) for number, row in enumerate(zip(*columns, strict=True), start=1)],
                "evaluations": [Evaluation(**look) for look in values["log"]["evaluations"]],
                "halvings": [MicroBatchReduction(**halving) for halving in values["log"]["halvings"]],
            }
        )
        RngState.of(_group(snapshot, f"generators.{accelerator.process_index}")).restore()


class Callback:
    """Who keeps a training's states, and knows when to. This one keeps nothing."""

    def watch(self, progress: TrainState) -> None:
        """Called once, when the training is about to begin or to go on."""

    def wanted(self, step: int) -> tuple[bool, bool]:
        """Whether this process wants the state after this step kept, and whether it was told to stop."""
        return False, False

    def keep(self, generators: RngState | None = None) -> str:
        """Keep the state as it is; say where. A meeting of the processes."""
        return ""

    def stop(self) -> None:
        """Keep the state as it is and raise `Interrupted`. A meeting of the processes."""


LISTS = ("steps", "evaluations", "halvings")


def _group(snapshot: Snapshot, group: str) -> dict[str, Tensor]:
    prefix = f"{group}."
    return {name.removeprefix(prefix): t for name, t in snapshot.tensors.items() if name.startswith(prefix)}
