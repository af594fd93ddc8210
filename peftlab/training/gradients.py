"""The gradients of one optimizer step: the same however its batch is split into micro-batches and processes."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch

from peftlab.distributed.optimizer_step import OptimizerStep
from peftlab.training import out_of_memory
from peftlab.training.adversarial import ForwardPasses
from peftlab.training.batching import Batch, split_evenly
from peftlab.training.callbacks import Callback
from peftlab.training.workload import Workload


@dataclass(frozen=True)
class Gradients:
    """Gradients of a step's loss: the mean over all its target tokens, and the method's penalty once."""

    workload: Workload
    optimizer_step: OptimizerStep
    passes: ForwardPasses
    callbacks: Callback

    def add(self, batch: Batch, accumulation: int, step: int) -> torch.Tensor:
        """Add the step's gradients to the parameters'; return this process's part of the loss, a scalar."""
        task, model, accelerator = self.workload.task, self.workload.model, self.workload.accelerator
        processes = accelerator.num_processes
        indices, micro_batches = self._micro_batches(batch, accumulation)
        counts = torch.stack([task.count_targets(micro) for micro in micro_batches]).sum()
        targets = max(1, int(accelerator.reduce(counts, reduction="sum")))
        loss = torch.zeros((), device=accelerator.device)
        self.callbacks.on_phase_end("inputs")
        for position, (part, micro) in enumerate(zip(indices, micro_batches, strict=True)):
            for number, perturbed in enumerate(self.passes.contexts(micro, part, step), start=1):
                last = position + 1 == len(micro_batches) and number == self.passes.count
                with perturbed, self.optimizer_step.no_sync_context(last=last):
                    with self.workload.autocast():
                        # The outputs get no name: it would keep large logits alive until the next forward.
                        inputs = task.model_inputs(micro, model)
                        part_loss = task.loss(self.optimizer_step.forward(**inputs), micro) / targets
                    self.callbacks.on_phase_end("forward")
                    # Gradients are averaged over processes, the step's loss is a sum over them.
                    self.optimizer_step.backward(part_loss * processes)
                if number == 1:
                    loss += part_loss.detach()
                self.callbacks.on_phase_end("backward")
                del part_loss  # and with it the graph, and what its nodes may hold
        penalty = self.workload.method.penalty(model)
        if penalty is not None:
            with self.optimizer_step.no_sync_context(last=False):  # every process computes the full penalty
                penalty.backward()
            self.callbacks.on_phase_end("backward")
        return loss

    def zero_grad(self) -> None:
        """Free the gradients and whatever else a step left that did not finish."""
        for parameter in self.workload.model.parameters():
            parameter.grad = None
        gc.collect()
        if self.workload.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()

    def padded_tokens(self, batch: Batch, accumulation: int) -> int:
        """Token positions computed for the batch on all processes, padding included."""
        parts = [self._token_counts(part) for part in self._split(batch, accumulation) if part]
        return sum(len(part) * sum(max(column) for column in zip(*part, strict=True)) for part in parts)

    def tokens(self, batch: Batch) -> int:
        """Tokens of the batch, without padding."""
        return sum(sum(counts) for counts in self._token_counts(batch))

    def largest_micro_batch(self, batch: Batch, accumulation: int) -> str:
        """Size of the largest micro-batch, e.g. `8 examples x 31 tokens`."""
        part = max(self._split(batch, accumulation), key=lambda p: len(p) * self._longest(p))
        return f"{len(part)} {'example' if len(part) == 1 else 'examples'} x {self._longest(part)} tokens"

    def _micro_batches(self, batch: Batch, accumulation: int) -> tuple[list[Batch], list[dict[str, torch.Tensor]]]:
        """This process's micro-batches: the indices of their examples, and their tensors on the device."""
        task, accelerator = self.workload.task, self.workload.accelerator
        indices, micro_batches = [], []
        for part in self._split(batch, accumulation)[accelerator.process_index :: accelerator.num_processes]:
            # Each forward is a collective call: an empty micro-batch runs one example without targets.
            indices.append(part or batch[:1])
            examples = [self.workload.examples[i] for i in indices[-1]]
            micro = task.collate(examples, self.workload.padding_token)
            micro_batches.append(to_device(micro if part else task.without_targets(micro), accelerator.device))
        return indices, micro_batches

    def _token_counts(self, part: Batch) -> list[tuple[int, ...]]:
        return [self.workload.task.lengths(self.workload.examples[i]) for i in part]

    def _longest(self, part: Batch) -> int:
        return max((self.workload.lengths[i] for i in part), default=0)

    def _split(self, batch: Batch, accumulation: int) -> list[Batch]:
        """Micro-batches of all processes: the first of each process, then the second of each, and so on."""
        processes = self.workload.accelerator.num_processes
        parts = split_evenly(batch, self.workload.lengths, processes * accumulation)
        return [part for part in parts if part] if processes == 1 else parts


def to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def catch_out_of_memory(attempt: Callable[[], torch.Tensor]) -> torch.Tensor | str:
    """The tensor that `attempt` returns, or if it runs out of memory, a text that says how much it requested.

    The error itself is not returned: its traceback would keep the step's tensors alive.
    """
    try:
        return attempt()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory.is_out_of_memory(error):
            raise
        return out_of_memory.requested(error)
