"""State of a training: everything that changes while it runs, saved as tensors and JSON and restored bit for bit."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peftlab.distributed.dispatch import devices
from peftlab.distributed.fsdp import full_tensor, local_shard, shard_like
from peftlab.distributed.optimizer_step import OptimizerStep
from peftlab.errors import UserError
from peftlab.training.gradient_checks import GradientStats
from peftlab.training.train_log import Evaluation, MicroBatchReduction, Step, TrainLog
from peftlab.training.workload import Workload

STEP_COLUMNS = {"epoch": torch.float64, "loss": torch.float64, "learning_rate": torch.float64,
                "tokens": torch.int64, "seconds": torch.float64}  # fmt: skip
"""Values of each step that a snapshot holds as one tensor per name."""
LISTS = ("steps", "evaluations", "micro_batch_reductions")
"""Fields of a TrainLog that hold records."""


@dataclass(frozen=True)
class Snapshot:
    """State of a training after `step` optimizer steps, on the CPU."""

    step: int
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]  # JSON


@dataclass(frozen=True)
class RngState:
    """States of one process's random number generators."""

    cpu: Tensor
    cuda: Mapping[int, Tensor]  # by index, of the GPUs that hold the model
    numpy: Any
    python: Any

    @classmethod
    def capture(cls, model: torch.nn.Module) -> RngState:
        """Current states of the generators that training `model` may draw from."""
        gpus = [device.index for device in devices(model) if device.type == "cuda"]
        cuda = {index: torch.cuda.get_rng_state(index) for index in gpus}
        return cls(torch.get_rng_state(), cuda, np.random.get_state(), random.getstate())

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        for index, state in self.cuda.items():
            torch.cuda.set_rng_state(state, index)
        np.random.set_state(self.numpy)
        random.setstate(self.python)

    def to_tensors(self) -> dict[str, Tensor]:
        _, keys, position, has_gauss, gauss = self.numpy
        version, state, next_gauss = self.python
        tensors = {
            "cpu": self.cpu,
            "numpy": torch.tensor([*keys.tolist(), position, has_gauss]),
            "numpy_gauss": torch.tensor([gauss], dtype=torch.float64),
            "python": torch.tensor([version, *state]),
            "python_gauss": torch.tensor([] if next_gauss is None else [next_gauss], dtype=torch.float64),
        }
        return tensors | {f"cuda.{index}": state for index, state in self.cuda.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> RngState:
        *keys, position, has_gauss = tensors["numpy"].tolist()
        version, *state = tensors["python"].tolist()
        numpy = ("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, float(tensors["numpy_gauss"][0]))
        gauss = tensors["python_gauss"].tolist()
        cuda = {int(name[5:]): state for name, state in tensors.items() if name.startswith("cuda.")}
        return cls(tensors["cpu"], cuda, numpy, (version, tuple(state), gauss[0] if gauss else None))


@dataclass
class TrainState:
    """The parts of a training that change. The base model is not among them: it is loaded again from the same seed."""

    workload: Workload
    optimizer_step: OptimizerStep
    schedule: torch.optim.lr_scheduler.LRScheduler
    accumulation: int = field(init=False)
    """Micro-batches per step and process; doubled where memory runs out."""
    log: TrainLog = field(default_factory=TrainLog)
    best: dict[str, Tensor] | None = None
    """Trained parameters at the best evaluation so far, by name; local shards if the model is sharded."""
    gradient_stats: GradientStats | None = None
    """Statistics of the first step, or of the first one after an evaluation."""
    trained: dict[str, torch.nn.Parameter] = field(init=False)
    """Trained parameters by name, including those that no forward uses."""

    def __post_init__(self) -> None:
        self.accumulation = self.workload.settings.accumulation
        self.trained = {name: p for name, p in self.workload.model.named_parameters() if p.requires_grad}

    def snapshot(self, rng: RngState | None = None) -> Snapshot:
        """The current state, or with `rng` the state when the RNG was in that state. A collective call.

        Tensors that are on the CPU already are not copied.
        """
        # Shards are gathered one tensor at a time: no device needs room for all of them.
        best = {name: full_tensor(tensor, self.trained[name]).cpu() for name, tensor in (self.best or {}).items()}
        method = self.workload.method.state(self.workload.model)
        groups = {
            "weights": {name: full_tensor(p).detach().cpu() for name, p in self.trained.items()},
            "best": best,
            "optimizer": self.optimizer_step.state(),
            "method": {name: value for name, value in method.items() if isinstance(value, Tensor)},
            "signs": dict(self.gradient_stats.samples) if self.gradient_stats else {},
            "steps": {
                name: torch.tensor([getattr(step, name) for step in self.log.steps], dtype=dtype)
                for name, dtype in STEP_COLUMNS.items()
            },
            **{f"generators.{rank}": tensors for rank, tensors in enumerate(self._rng_of_processes(rng))},
        }
        tensors = {
            f"{group}.{name}": tensor.detach().cpu().contiguous()
            for group, named in groups.items()
            for name, tensor in named.items()
        }
        values = self._values({name: value for name, value in method.items() if not isinstance(value, Tensor)})
        return Snapshot(len(self.log.steps), tensors, values)

    def _rng_of_processes(self, rng: RngState | None) -> list[dict[str, Tensor]]:
        mine = (rng or RngState.capture(self.workload.model)).to_tensors()
        if self.workload.accelerator.num_processes == 1:
            return [mine]
        from accelerate.utils import gather_object

        gathered: list[dict[str, Tensor]] = gather_object([mine])
        return gathered

    def _values(self, method: dict[str, Any]) -> dict[str, Any]:
        """The JSON values of a snapshot."""
        log, stats = self.log, self.gradient_stats
        scalars = {f.name: getattr(log, f.name) for f in dataclasses.fields(log) if f.name not in LISTS}
        return {
            "log": {
                **scalars,
                "evaluations": [dataclasses.asdict(evaluation) for evaluation in log.evaluations],
                "halvings": [dataclasses.asdict(reduction) for reduction in log.micro_batch_reductions],
            },
            "method": method,
            "schedule": {name: value for name, value in self.schedule.state_dict().items() if name != "lr_lambdas"},
            "groups": [
                {name: value for name, value in group.items() if isinstance(value, (bool, int, float))}
                for group in self.optimizer_step.optimizer.param_groups
            ],
            "signs": None if stats is None else {"count": stats.count, "missing": stats.missing, "zero": stats.zero},
            "accumulation": self.accumulation,
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Restore a snapshot into the same model with the same method. Raises UserError if it does not fit."""
        try:
            self._restore(snapshot)
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(
                f"--resume: the checkpoint of step {snapshot.step} does not fit this run: {reason}"
            ) from None

    def _restore(self, snapshot: Snapshot) -> None:
        values, parameters = snapshot.values, self.trained
        optimizer = self.optimizer_step.optimizer
        weights = _group(snapshot, "weights")
        with torch.no_grad():
            for name, parameter in parameters.items():
                local_shard(parameter).copy_(shard_like(weights.pop(name), parameter))
        if weights:
            raise ValueError(f"this run does not train {next(iter(weights))}")
        self.optimizer_step.load_state(_group(snapshot, "optimizer"))
        # Checkpoints had only the learning rates once.
        groups = values["groups"] if "groups" in values else [{"lr": rate} for rate in values["learning_rates"]]
        for group, stored in zip(optimizer.param_groups, groups, strict=True):
            group.update(stored)
        self.schedule.load_state_dict({**values["schedule"], "lr_lambdas": [None] * len(groups)})
        self.workload.method.load_state(self.workload.model, {**_group(snapshot, "method"), **values["method"]})
        best = _group(snapshot, "best")
        self.best = {
            name: shard_like(tensor.to(parameters[name].device), parameters[name]) for name, tensor in best.items()
        } or None
        stats = values["signs"]
        if stats is not None:
            samples = {n: tensor.to(parameters[n].device) for n, tensor in _group(snapshot, "signs").items()}
            self.gradient_stats = GradientStats(stats["count"], tuple(stats["missing"]), tuple(stats["zero"]), samples)
        self.accumulation = values["accumulation"]
        self.log = _restored_log(snapshot)
        rank = self.workload.accelerator.process_index
        RngState.from_tensors(_group(snapshot, f"generators.{rank}")).restore()

    def load_best(self) -> None:
        """Copy the parameters of the best evaluation into the model, if they are kept."""
        with torch.no_grad():
            for name, parameter in self.workload.model.named_parameters():
                if self.best is not None and name in self.best:
                    local_shard(parameter).copy_(self.best[name])


def _restored_log(snapshot: Snapshot) -> TrainLog:
    log, steps = dict(snapshot.values["log"]), _group(snapshot, "steps")
    reductions = log.pop("halvings")  # its name in the files
    columns = [steps[name].tolist() for name in STEP_COLUMNS]
    return TrainLog(
        **{
            **log,
            "steps": [Step(number, *row) for number, row in enumerate(zip(*columns, strict=True), start=1)],
            "evaluations": [Evaluation(**evaluation) for evaluation in log["evaluations"]],
            "micro_batch_reductions": [MicroBatchReduction(**reduction) for reduction in reductions],
        }
    )


def _group(snapshot: Snapshot, group: str) -> dict[str, Tensor]:
    """Tensors of a snapshot whose names start with `group.`, without that prefix."""
    prefix = f"{group}."
    return {name.removeprefix(prefix): t for name, t in snapshot.tensors.items() if name.startswith(prefix)}
