"""Batches of examples of similar length, in an order that depends on nothing but seed and epoch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

POOL = 50  # batches whose examples are sorted by length together: larger pads less and shuffles less

Batch = list[int]  # indices of examples


def epoch_batches(
    lengths: Sequence[int], *, seed: int, epoch: int, examples: int | None = None, tokens: int | None = None
) -> list[Batch]:
    """Shuffled batches of at most `examples` examples, or of at most `tokens` tokens with padding.

    An example longer than `tokens` gets a batch to itself.

    >>> batches = epoch_batches([3, 9, 3, 9], seed=0, epoch=0, tokens=18)
    >>> sorted(sorted(batch) for batch in batches)
    [[0, 2], [1, 3]]
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths)).tolist()
    mean = sum(lengths) / max(len(lengths), 1)
    pool = POOL * (examples or max(1, round((tokens or 0) / mean)))
    batches: list[Batch] = []
    for start in range(0, len(order), pool):
        by_length = sorted(order[start : start + pool], key=lambda i: lengths[i])
        batches += split_batches(by_length, lengths, examples=examples, tokens=tokens)
    return [batches[i] for i in generator.permutation(len(batches))]


def split_batches(
    order: Sequence[int], lengths: Sequence[int], *, examples: int | None = None, tokens: int | None = None
) -> list[Batch]:
    """Split `order` into consecutive batches, each as large as the limit allows.

    >>> split_batches([0, 1, 2], [2, 2, 3], tokens=6)
    [[0, 1], [2]]
    """
    batches: list[Batch] = []
    longest = 0
    for i in order:
        full = True
        if batches:
            count, longest_with = len(batches[-1]) + 1, max(longest, lengths[i])
            full = count > examples if examples is not None else count * longest_with > (tokens or 0)
        if full:
            batches.append([])
            longest = 0
        batches[-1].append(i)
        longest = max(longest, lengths[i])
    return batches


def split_evenly(batch: Batch, lengths: Sequence[int], parts: int) -> list[Batch]:
    """Split `batch` into `parts` micro-batches, each of examples of similar length; some are empty if examples are few.

    >>> split_evenly([0, 1, 2], [5, 1, 3], 2)
    [[1, 2], [0]]
    """
    by_length = sorted(batch, key=lambda i: (lengths[i], i))
    size, extra = divmod(len(by_length), parts)
    bounds = [0]
    for part in range(parts):
        bounds.append(bounds[-1] + size + (part < extra))
    return [by_length[a:b] for a, b in itertools.pairwise(bounds)]
