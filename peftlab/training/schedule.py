"""Which batch each optimizer step takes, and at which learning rate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from peftlab.training.batching import Batch, epoch_batches
from peftlab.training.settings import Seeds, Training

CURVES: Mapping[str, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "1-sqrt": lambda done: 1 - math.sqrt(done),
    "constant": lambda done: 1.0,
}
"""Fraction of the decay that is done -> factor on the learning rate."""


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
    """Factor on the learning rate at 0-based `step` of `total`: a linear warm-up, then the schedule.

    With w = round(warmup * total) and the steps d of the decay, which are the last round(decay_fraction * total) for
    wsd and total - w for the others, the factor is (step + 1) / w in the warm-up, 1 until the decay starts, and then
    m + (1 - m) f((step - total + d) / d) with m = minimum_learning_rate and f one of `CURVES`.

    Linear and cosine: as in transformers' schedules with warm-up, which begin at 0 in place of 1 / w. wsd: Hu et al.,
    2024, "MiniCPM", arXiv:2404.06395; the curve 1-sqrt: Hägele et al., 2024, arXiv:2405.18392.

    >>> [round(learning_rate_factor(step, 10, Training(warmup=0.2)), 3) for step in (0, 1, 2, 9)]
    [0.5, 1.0, 1.0, 0.125]
    >>> wsd = Training(schedule="wsd", warmup=0.0, decay_fraction=0.4, minimum_learning_rate=0.1)
    >>> [round(learning_rate_factor(step, 10, wsd), 3) for step in (0, 5, 6, 7, 9)]
    [1.0, 1.0, 1.0, 0.55, 0.221]
    """
    warmup = round(settings.warmup * total)
    if step < warmup:
        return (step + 1) / warmup
    stable = settings.schedule == "wsd"
    decay = max(1, round(settings.decay_fraction * total) if stable else total - warmup)
    if step < total - decay:
        return 1.0
    curve = CURVES[settings.decay_shape if stable else settings.schedule]
    minimum = settings.minimum_learning_rate
    return minimum + (1 - minimum) * curve((step - total + decay) / decay)


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
