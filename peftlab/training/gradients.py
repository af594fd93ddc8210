"""The gradients of one optimiser step: the same however its batch falls into micro-batches and processes."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from peftlab.data.examples import Example
from peftlab.distributed.optimizer_step import OptimizerStep
from peftlab.methods.method import Method
from peftlab.tasks.task import Task
from peftlab.training import out_of_memory
from peftlab.training.batching import Batch, shares
from peftlab.training.perturbation import Perturbation

if TYPE_CHECKING:
    from accelerate import Accelerator

Phase = Literal["inputs", "forward", "backward", "optimizer"]  # of a step, in this order; a micro-batch has its own two


@dataclass(frozen=True)
class Gradients:
    """Of the loss of a step: the mean over all its target tokens, and the method's penalty once."""

    update: OptimizerStep
    model: torch.nn.Module
    method: Method
    task: Task
    examples: Sequence[Example]
    lengths: Sequence[int]  # of the examples: counted once, not at each step
    padding_token: int
    accelerator: Accelerator
    autocast: Callable[[], contextlib.AbstractContextManager[Any]]
    perturbation: Perturbation
    mark: Callable[[Phase], object]

    def add(self, batch: Batch, accumulation: int, step: int) -> torch.Tensor:
        """Add the step's gradients to the parameters'; return this process's share of its loss."""
        accelerator, processes = self.accelerator, self.accelerator.num_processes
        micro_batches, own = [], []
        for part in self._parts(batch, accumulation)[accelerator.process_index :: processes]:
            # Each forward is a meeting of the processes: a share without examples borrows one and learns nothing.
            own.append(part or batch[:1])
            micro = self.task.collate([self.examples[i] for i in own[-1]], self.padding_token)
            micro_batches.append(to_device(micro if part else self.task.without_targets(micro), accelerator.device))
        counts = torch.stack([self.task.count_targets(micro) for micro in micro_batches]).sum()
        targets = max(1, int(accelerator.reduce(counts, reduction="sum")))
        loss = torch.zeros((), device=accelerator.device)
        self.mark("inputs")
        for position, (part, micro) in enumerate(zip(own, micro_batches, strict=True)):
            for turn, disturbed in enumerate(self.perturbation.passes(micro, part, step), start=1):
                last_one = position + 1 == len(micro_batches) and turn == self.perturbation.turns
                with disturbed, self.update.no_sync_context(last=last_one):
                    with self.autocast():
                        # No name for the outputs: logits of a large vocabulary would be kept until the next are there.
                        inputs = self.task.model_inputs(micro, self.model)
                        share = self.task.loss(self.update.forward(**inputs), micro) / targets
                    self.mark("forward")
                    # They are averaged over processes, the step's loss is a sum over them.
                    self.update.backward(share * processes)
                if turn == 1:
                    loss += share.detach()
                self.mark("backward")
                del share  # and with it the graph, and what its nodes may hold on to
        penalty = self.method.penalty(self.model)
        if penalty is not None:
            with self.update.no_sync_context(last=False):  # every process has the whole of it already
                penalty.backward()
            self.mark("backward")
        return loss

    def zero_grad(self) -> None:
        """Drop what a step that broke off has left."""
        for parameter in self.model.parameters():
            parameter.grad = None
        gc.collect()
        if self.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()

    def positions(self, batch: Batch, accumulation: int) -> int:
        """How many positions are computed, padding included."""
        parts = [self._lengths(part) for part in self._parts(batch, accumulation) if part]
        return sum(len(part) * sum(max(column) for column in zip(*part, strict=True)) for part in parts)

    def tokens(self, batch: Batch) -> int:
        """Of these positions, how many are no padding."""
        return sum(sum(lengths) for lengths in self._lengths(batch))

    def largest(self, batch: Batch, accumulation: int) -> str:
        """The largest micro-batch in words: `8 examples x 31 tokens`."""
        part = max((part for part in self._parts(batch, accumulation)), key=lambda p: len(p) * self._longest(p))
        return f"{len(part)} {'example' if len(part) == 1 else 'examples'} x {self._longest(part)} tokens"

    def _lengths(self, part: Batch) -> list[tuple[int, ...]]:
        return [self.task.lengths(self.examples[i]) for i in part]

    def _longest(self, part: Batch) -> int:
        return max((self.lengths[i] for i in part), default=0)

    def _parts(self, batch: Batch, accumulation: int) -> list[Batch]:
        """One after the other for each process, then the next of each."""
        processes = self.accelerator.num_processes
        parts = shares(batch, self.lengths, processes * accumulation)
        return [part for part in parts if part] if processes == 1 else parts


def to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def broke_for_memory(attempt: Callable[[], torch.Tensor]) -> torch.Tensor | str:
    """What the attempt gives, or in words that memory ran out in it. No error is held on to, nor what hangs on it."""
    try:
        return attempt()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory.caused(error):
            raise
        return out_of_memory.asked_for(error)
