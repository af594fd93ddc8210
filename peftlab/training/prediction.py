"""Predictions of a model over a split: the same on every process, and for any number of processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from peftlab.data.examples import Example
from peftlab.distributed import fsdp
from peftlab.tasks.task import Task
from peftlab.training.batching import Batch, split_batches
from peftlab.training.gradients import to_device
from peftlab.training.interruption import Interrupted, received_signal
from peftlab.training.train_log import Records

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase


@dataclass
class LossTotal:
    """Loss of a split, summed over its targets as `Task.loss` does."""

    total: float = 0.0
    targets: int = 0

    @property
    def mean(self) -> float | None:
        """Mean per target, in nats (for numbers: squared error); None without targets."""
        return self.total / self.targets if self.targets else None

    def add(self, task: Task, model: torch.nn.Module, inputs: dict[str, torch.Tensor], outputs: Any) -> None:
        """Add a batch. `outputs` of a generation have no logits: a forward pass computes them."""
        if not hasattr(outputs, "keys"):
            outputs = model(**task.model_inputs(inputs, model))
        self.total += float(task.loss(outputs, inputs))
        self.targets += int(task.count_targets(inputs))


def predict(
    model: torch.nn.Module,
    *,
    task: Task,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    batch_tokens: int,
    accelerator: Accelerator,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]],
    loss: LossTotal | None = None,
    class_scores: bool = False,
) -> Records:
    """A decoded record for each row, in order. Raises Interrupted if a signal came to any process.

    The loss of the examples, which must have targets, is added to `loss` in the same pass. With `class_scores` each
    record has `scores`, the probability of every label (`Task.class_scores`).
    """
    lengths = [len(example) for example in examples]
    order = sorted(range(len(examples)), key=lambda i: lengths[i])
    batches = split_batches(order, lengths, tokens=batch_tokens)
    records: list[tuple[int, dict[str, Any]]] = []
    counted, repeated = LossTotal(), LossTotal()
    was_training = model.training
    model.eval()
    # Not inference_mode: bitsandbytes keeps tensors it makes here, and training must be able to use them.
    with torch.no_grad(), autocast():
        for batch, counts in _batches_of_process(batches, task.generates(examples), model, accelerator):
            if _must_stop(model, accelerator):
                break
            chosen = [examples[i] for i in batch]
            inputs = to_device(task.collate(chosen, tokenizer.pad_token_id), accelerator.device)
            outputs = task.predict(model, inputs, tokenizer)
            if loss is not None:  # of a sharded model, a repeated batch takes part in the collective calls
                (counted if counts else repeated).add(task, model, inputs, outputs)
            if counts:
                decoded = task.decode(outputs, chosen)
                if class_scores:
                    scores = task.class_scores(outputs)
                    decoded = [{**record, "scores": each} for record, each in zip(decoded, scores, strict=True)]
                records += zip(batch, decoded, strict=True)
    fsdp.reshard(model)
    model.train(was_training)
    signal = received_signal()
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        records = gather_object(records)
        parts = gather_object([(counted.total, counted.targets)])
        counted = LossTotal(sum(total for total, _ in parts), sum(targets for _, targets in parts))
        signal = max((number for number in gather_object([signal]) if number is not None), default=None)
    if signal is not None:
        raise Interrupted(signal)
    if loss is not None:
        loss.total += counted.total
        loss.targets += counted.targets
    return task.merge([record for _, record in sorted(records, key=lambda pair: pair[0])], examples)


def _batches_of_process(
    batches: Sequence[Batch], generates: bool, model: torch.nn.Module, accelerator: Accelerator
) -> Iterator[tuple[Batch, bool]]:
    """Batches that this process predicts, and whether each counts. A batch is never split: padding stays the same."""
    rank, processes = accelerator.process_index, accelerator.num_processes
    if not fsdp.is_sharded(model):
        yield from ((batch, True) for batch in batches[rank::processes])
    elif generates:  # a text takes as many forwards as it has tokens, so all processes run the same batches
        yield from ((batch, rank == 0) for batch in batches)
    else:  # each forward is a collective call: a process that has no batch left repeats the first one
        for first in range(0, len(batches), processes):
            mine = first + rank
            yield (batches[mine], True) if mine < len(batches) else (batches[0], False)


def _must_stop(model: torch.nn.Module, accelerator: Accelerator) -> bool:
    """True if this process got a signal; of a sharded model, whose forward is a collective call, if any process did."""
    if not fsdp.is_sharded(model):
        return received_signal() is not None
    stopped = torch.tensor(float(received_signal() is not None), device=accelerator.device)
    return bool(accelerator.reduce(stopped, reduction="sum"))
