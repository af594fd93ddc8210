"""Gradient accumulation: four micro-batches train as one batch does, for every method at every precision."""

from __future__ import annotations

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
from peftlab.training.workload import Workload
from tests.contract import bases
from tests.contract.bases import SUPPORTED, Combination, coordinates, require
from tests.sampling import sampled

STEPS = 4


def examples() -> list[Example]:
    """Eight sentences of 5 to 12 tokens, with a target on every second token."""
    result = []
    for number in range(8):
        ids = [3 + (7 * number + position) % 90 for position in range(5 + number)]
        labels = [position % 3 if position % 2 else -100 for position in range(len(ids))]
        result.append(Example({"input_ids": ids, "labels": labels}, Row(f"test:{number}", {})))
    return result


def change(base: PreTrainedModel, method: Method, accumulation: int) -> dict[str, Tensor]:
    """Change of each trainable tensor by training with this many micro-batches per step."""
    torch.manual_seed(3)
    model = method.apply(base, bases.plan("encoder"))
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    train(
        Workload(
            model=model,
            method=method,
            task=bases.TASK,
            examples=examples(),
            padding_token=0,
            # A large epsilon makes the update proportional to the gradient; a small one would magnify rounding errors.
            settings=Training(
                steps=STEPS,
                batch_examples=8,
                accumulation=accumulation,
                adam_epsilon=1.0,
                warmup=0.0,
                weight_decay=0.0,  # would change a tensor without any gradient
            ),
            learning_rate=0.1,
            seeds=Seeds(),
            accelerator=Accelerator(cpu=True),
            evaluate=lambda: ({"entity_f1": 0.0}, []),
        )
    )
    return {name: p.detach() - start[name] for name, p in model.named_parameters() if name in start}


ENCODER = [combination for combination in SUPPORTED if combination.family == "encoder"]


@pytest.mark.parametrize("combination", sampled(ENCODER, coordinates, strength=1), ids=str)
def test_four_micro_batches_train_as_one_batch(
    combination: Combination, fresh: Callable[[str, str], PreTrainedModel]
) -> None:
    full_batch = change(fresh("encoder", combination.precision), combination.method, 1)
    micro_batches = change(fresh("encoder", combination.precision), combination.method, 4)
    largest = max(float(tensor.abs().max()) for tensor in full_batch.values())
    require(largest > 1e-3, combination, "training changes the parameters", found=largest, expected="> 1e-3")
    distances = {name: float((tensor - micro_batches[name]).abs().max()) for name, tensor in full_batch.items()}
    far = {name: distance for name, distance in distances.items() if distance > 1e-6}
    promise = "four micro-batches change each tensor as one batch does"
    require(not far, combination, promise, found=f"differences of {far}", expected="at most 1e-6")


def test_the_penalty_of_a_method_is_part_of_the_step(fresh: Callable[[str, str], PreTrainedModel]) -> None:
    with_penalty, without = (
        change(fresh("encoder", "none"), AdaLora(initial_rank=6, target_rank=3, orthogonality=weight), 1)
        for weight in (0.5, 0.0)
    )
    assert [
        name for name, tensor in with_penalty.items() if ".lora_A." in name and torch.equal(tensor, without[name])
    ] == []
