"""Which batch each optimizer step takes, and at which learning rate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from peftlab.training.batching import Batch, epoch_batches
from peftlab.training.settings import Seeds, Training


@dataclass(frozen=True)
class ScheduledBatch:
    """The batch of one optimizer step."""

    step: int  # from 1
    epoch: float  # passes over the examples that are done after this step
    examples: Batch
    ends_epoch: bool


def schedule_length(lengths: Sequence[int], settings: Training, seeds: Seeds) -> int:
    """Number of optimizer steps that `train` takes if it does not stop early."""
    if settings.steps is not None:
        return settings.steps
    full_epochs, fraction = divmod(settings.passes, 1)
    counts = [len(_epoch(lengths, settings, seeds, epoch)) for epoch in range(math.ceil(settings.passes))]
    return max(1, sum(counts[: int(full_epochs)]) + (round(fraction * counts[-1]) if fraction else 0))


def learning_rate_factor(step: int, total: int, settings: Training) -> float:
    """Factor on the learning rate at 0-based `step`: linear warm-up, then the schedule down to 0.

    >>> [round(learning_rate_factor(step, 10, Training(warmup=0.2)), 3) for step in (0, 1, 2, 9)]
    [0.5, 1.0, 1.0, 0.125]
    """
    warmup = round(settings.warmup * total)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    if settings.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done if settings.schedule == "linear" else 1.0


def scheduled_batches(lengths: Sequence[int], settings: Training, seeds: Seeds, total: int) -> Iterator[ScheduledBatch]:
    """`total` batches, epoch after epoch."""
    step = 0
    for epoch in itertools.count():
        batches = _epoch(lengths, settings, seeds, epoch)
        for position, batch in enumerate(batches, start=1):
            step += 1
            yield ScheduledBatch(step, epoch + position / len(batches), batch, position == len(batches))
            if step == total:
                return


def _epoch(lengths: Sequence[int], settings: Training, seeds: Seeds, epoch: int) -> list[Batch]:
    return epoch_batches(lengths, seed=seeds.data_order, epoch=epoch, **settings.batch)
