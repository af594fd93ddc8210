"""Where processes meet in an optimiser step: gradients are added up and clipped, and the step is taken."""

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
    """Of one process; of several that have whole copies (DDP); of several that have shares (FSDP2)."""

    def __init__(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator, clip: float | None
    ) -> None:
        self.optimizer = optimizer
        self.accelerator = accelerator
        self.clip = clip  # largest norm of the gradient
        self.trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.forward = self.wrap_ddp(model)  # what is called to train

    def wrap_ddp(self, model: torch.nn.Module) -> torch.nn.Module:
        """`model` so that its backward is a meeting of the processes."""
        copies = self.accelerator.num_processes > 1 and not is_sharded(model)
        together: torch.nn.Module = self.accelerator.prepare_model(model) if copies else model
        return together

    def no_sync_context(self, *, last: bool) -> contextlib.AbstractContextManager[object]:
        """The context of a forward and its backward; before the `last` of a step the processes need not meet."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.forward)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`; over the processes they become the mean."""
        loss.backward()

    def gradient(self, parameter: torch.nn.Parameter) -> Tensor | None:
        """All of it, after the last backward and before the step, or None: a meeting of the processes."""
        return None if parameter.grad is None else full_tensor(parameter.grad)

    def step(self) -> float:
        """Clip the gradients, take the step, and return their norm as it was; no step if that is not finite."""
        norm = float(full_tensor(torch.nn.utils.clip_grad_norm_(self.trainable, self.clip or math.inf)))
        if math.isfinite(norm):
            self.optimizer.step()
        return norm

    def zero_grad(self) -> None:
        """The gradients."""
        self.optimizer.zero_grad()

    def unused(self) -> list[torch.nn.Parameter]:
        """Those that never had a gradient, and so have no moments."""
        return [parameter for parameter in self.trainable if parameter not in self.optimizer.state]

    def state(self) -> dict[str, Tensor]:
        """The optimiser's, on the CPU: a meeting of the processes."""
        return {
            f"{parameter}.{name}": full_tensor(value).cpu()
            for parameter, state in self.optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave, for parameters that are as they were."""
        state = self.optimizer.state_dict()
        state["state"] = {}
        optimized = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for name, tensor in tensors.items():
            number, _, key = name.partition(".")
            state["state"].setdefault(int(number), {})[key] = shard_like(tensor, optimized[int(number)])
        self.optimizer.load_state_dict(state)
