"""Batches of an epoch: order, padding and micro-batches."""

import torch

from peftlab.data.examples import Encoded, Example
from peftlab.tasks import Task
from peftlab.training.batching import epoch_batches, split_evenly
from tests.training.test_loop import Load, trained


def test_each_epoch_sees_every_example_once_in_another_order() -> None:
    lengths = [5, 9, 3, 7, 7, 2, 8, 4] * 20
    epochs = [epoch_batches(lengths, seed=0, epoch=epoch, tokens=32) for epoch in (0, 1)]
    for batches in epochs:
        assert sorted(i for batch in batches for i in batch) == list(range(160))
        assert all(len(batch) * max(lengths[i] for i in batch) <= 32 for batch in batches)
    assert epochs[0] != epochs[1]
    assert epochs[0] == epoch_batches(lengths, seed=0, epoch=0, tokens=32)
    assert epochs[0] != epoch_batches(lengths, seed=1, epoch=0, tokens=32)


def test_batches_of_similar_length_pad_little() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 60, (3000,), generator=generator).tolist()
    batches = epoch_batches(lengths, seed=0, epoch=0, examples=16)
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert 1 - sum(lengths) / padded < 0.05


def test_micro_batches_of_a_small_batch_may_be_empty_but_no_example_is_lost() -> None:
    parts = split_evenly([4, 1], [9, 2, 9, 9, 3], 4)
    assert parts == [[1], [4], [], []]


def test_a_further_step_does_not_count_the_lengths_of_all_the_data(
    base_of: Load, tagging: Task, encoded: Encoded
) -> None:
    counted = [0]

    class Counted(Example):
        def __len__(self) -> int:
            counted[0] += 1
            return super().__len__()

    examples = Encoded([Counted(example.features, example.row) for example in encoded.examples], {})
    totals = []
    for steps in (1, 2):
        counted[0] = 0
        trained(base_of(), tagging, examples, steps=steps, evaluate_every=2)
        totals.append(counted[0])
    assert totals[1] - totals[0] < len(examples.examples)
