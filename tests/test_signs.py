"""A run stops with one line rather than training nothing."""

import contextlib
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from peftlab.base import Base
from peftlab.examples import Encoded
from peftlab.methods import Plan
from peftlab.methods.lora import Lora
from peftlab.part import BadInput
from peftlab.settings import Seeds, Training
from peftlab.tasks import Task
from peftlab.training import Evaluation, Step, TrainLog, train

Trains = Callable[..., TrainLog]
Hook = Callable[[nn.Module, Any, torch.Tensor], torch.Tensor]


class Silence:
    def step(self, step: Step, total: int, log: TrainLog) -> None: ...
    def evaluation(self, evaluation: Evaluation, best: bool) -> None: ...


class Unowned(Lora):
    """Its optimiser is given something else."""

    kind: Literal["lora"] = "lora"

    def parameter_groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        return [{"params": [nn.Parameter(torch.zeros(1))], "lr": learning_rate}]


@pytest.fixture
def trains(base_of: Callable[..., Base], tagging: Task, encoded: Encoded) -> Trains:
    """Four steps, an evaluation after the second; `hook` sits on one LoRA layer from `when` on."""

    def run(hook: Hook | None = None, *, when: str = "start", method: type[Lora] = Lora) -> TrainLog:
        base = base_of()
        lora = method(rank=2, targets="attention")
        model = lora.apply(base.model, Plan(4, tagging.task_type, base.head))
        layer = next(module for name, module in model.named_modules() if name.endswith("lora_B.default"))

        def put(now: str) -> None:
            if hook is not None and now == when:
                layer.register_forward_hook(hook)

        def evaluate() -> tuple[dict[str, float], list[dict[str, Any]]]:
            put("evaluation")
            return {tagging.selection: 0.0}, []

        put("start")
        return train(
            model,
            method=lora,
            task=tagging,
            examples=encoded.examples[:8],
            padding_token=0,
            settings=Training(steps=4, batch_examples=4, evaluate_every=2),
            learning_rate=1e-3,
            seeds=Seeds(),
            accelerator=Accelerator(cpu=True),
            autocast=contextlib.nullcontext,
            evaluate=evaluate,
            observer=Silence(),
        )

    return run


def test_a_sound_training_is_left_alone(trains: Trains) -> None:
    assert len(trains().steps) == 4


def test_a_tensor_without_gradient_stops_it_at_the_first_step(trains: Trains) -> None:
    with pytest.raises(BadInput, match=r"at step 1, 2 of \d+ trainable tensors get no gradient \(.*lora_A") as caught:
        trains(lambda module, inputs, output: output.detach())
    assert "\n" not in str(caught.value)


def test_a_gradient_that_an_evaluation_takes_away_stops_it(trains: Trains) -> None:
    with pytest.raises(BadInput, match="at step 3, after an evaluation, 2 of"):
        trains(lambda module, inputs, output: output.detach(), when="evaluation")


def test_a_gradient_that_is_always_zero_stops_it_though_something_else_learns(trains: Trains) -> None:
    with pytest.raises(BadInput, match="at step 3, after an evaluation, 2 of"):
        trains(lambda module, inputs, output: output * 0)


def test_parameters_that_do_not_move_stop_it(trains: Trains) -> None:
    with pytest.raises(BadInput, match=r"after 2 steps none of \d+ trainable tensors has changed"):
        trains(method=Unowned)
