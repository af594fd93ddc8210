"""Optimizer step of one or several processes: gradients are summed and clipped, then the optimizer updates."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from peftlab.distributed.fsdp import full_tensor, is_sharded, shard_like

if TYPE_CHECKING:
    from accelerate import Accelerator


class OptimizerStep:
    """Optimizer step of one process, of replicas (DDP) or of a sharded model (FSDP2)."""

    def __init__(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator, *, clip: float | None
    ) -> None:
        """`clip` is the largest norm of the gradient, or None."""
        self.optimizer = optimizer
        self.accelerator = accelerator
        self.clip = clip
        self.trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.forward = self.wrap_ddp(model)
        """Module to call in training."""

    def wrap_ddp(self, model: torch.nn.Module) -> torch.nn.Module:
        """Wrap replicas in DistributedDataParallel, whose backward pass is a collective call; others are unchanged."""
        replicas = self.accelerator.num_processes > 1 and not is_sharded(model)
        wrapped: torch.nn.Module = self.accelerator.prepare_model(model) if replicas else model
        return wrapped

    def no_sync_context(self, *, last: bool) -> contextlib.AbstractContextManager[object]:
        """Context of a forward and backward pass. Processes synchronize gradients only in the `last` one of a step."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.forward)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of `loss`. Over several processes they are averaged."""
        loss.backward()

    def gradient(self, parameter: torch.nn.Parameter) -> Tensor | None:
        """Full gradient between the last backward pass and the step, or None. A collective call."""
        return None if parameter.grad is None else full_tensor(parameter.grad)

    def step(self) -> float:
        """Clip the gradients and update. Returns the norm before clipping; nothing is updated if it is not finite."""
        norm = float(full_tensor(torch.nn.utils.clip_grad_norm_(self.trainable, self.clip or math.inf)))
        if math.isfinite(norm):
            self.optimizer.step()
        return norm

    def zero_grad(self) -> None:
        """Clear the gradients."""
        self.optimizer.zero_grad()

    def unused(self) -> list[torch.nn.Parameter]:
        """Trainable parameters that never received a gradient and therefore have no optimizer state."""
        return [parameter for parameter in self.trainable if not self.optimizer.state.get(parameter)]

    def state(self) -> dict[str, Tensor]:
        """Full optimizer state on the CPU, which may share memory with the optimizer's. A collective call."""
        return {
            f"{parameter}.{name}": full_tensor(value).cpu()
            for parameter, state in self.optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned, for the same parameters."""
        state = self.optimizer.state_dict()
        state["state"] = {}
        optimized = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for name, tensor in tensors.items():
            number, _, key = name.partition(".")
            state["state"].setdefault(int(number), {})[key] = shard_like(tensor, optimized[int(number)])
        self.optimizer.load_state_dict(state)
