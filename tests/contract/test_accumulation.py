"""A step cut into four pieces is the step in one, whatever the method adds to the loss and over every precision."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from peftlab.data.examples import Example, Row
from peftlab.methods import Method
from peftlab.methods.adalora import AdaLora
from peftlab.training.loop import train
from peftlab.training.settings import Seeds, Training
from peftlab.training.train_log import Evaluation, MicroBatchReduction, Step, TrainLog
from tests.contract import bases
from tests.contract.bases import SUPPORTED, Combination, coordinates
from tests.sampling import sampled

STEPS = 4


class Silence:
    def step(self, step: Step, total: int, log: TrainLog) -> None: ...
    def evaluation(self, evaluation: Evaluation, best: bool) -> None: ...
    def halving(self, halving: MicroBatchReduction) -> None: ...


def examples() -> list[Example]:
    """Eight sentences of 5 to 12 tokens, a target on every second one."""
    found = []
    for number in range(8):
        ids = [3 + (7 * number + position) % 90 for position in range(5 + number)]
        labels = [position % 3 if position % 2 else -100 for position in range(len(ids))]
        found.append(Example({"input_ids": ids, "labels": labels}, Row(f"test:{number}", {})))
    return found


def change(base: PreTrainedModel, method: Method, accumulation: int) -> dict[str, Tensor]:
    """What training in this many pieces does to each trainable tensor."""
    torch.manual_seed(3)
    model = method.apply(base, bases.plan("encoder"))
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    train(
        model,
        method=method,
        task=bases.TASK,
        examples=examples(),
        padding_token=0,
        # A large epsilon leaves Adam proportional to the gradient: else it would blow up what is but rounding.
        settings=Training(
            steps=STEPS,
            batch_examples=8,
            accumulation=accumulation,
            adam_epsilon=1.0,
            warmup=0.0,
            weight_decay=0.0,  # which moves a tensor whatever its gradient
        ),
        learning_rate=0.1,
        seeds=Seeds(),
        accelerator=Accelerator(cpu=True),
        autocast=contextlib.nullcontext,
        evaluate=lambda: ({"entity_f1": 0.0}, []),
        observer=Silence(),
    )
    return {name: p.detach() - start[name] for name, p in model.named_parameters() if name in start}


ENCODER = [combination for combination in SUPPORTED if combination.family == "encoder"]


@pytest.mark.parametrize("combination", sampled(ENCODER, coordinates, strength=1), ids=str)
def test_four_pieces_train_as_one_does(combination: Combination, fresh: Callable[[str, str], PreTrainedModel]) -> None:
    whole = change(fresh("encoder", combination.precision), combination.method, 1)
    pieces = change(fresh("encoder", combination.precision), combination.method, 4)
    assert max(float(tensor.abs().max()) for tensor in whole.values()) > 1e-3
    far = {name: float((tensor - pieces[name]).abs().max()) for name, tensor in whole.items()}
    assert {name: distance for name, distance in far.items() if distance > 1e-6} == {}


def test_what_a_method_adds_to_the_loss_is_in_the_step(fresh: Callable[[str, str], PreTrainedModel]) -> None:
    with_it, without = (
        change(fresh("encoder", "none"), AdaLora(initial_rank=6, target_rank=3, orthogonality=weight), 1)
        for weight in (0.5, 0.0)
    )
    assert [name for name, tensor in with_it.items() if ".lora_A." in name and torch.equal(tensor, without[name])] == []
