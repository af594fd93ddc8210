"""The optimizer step of one process: clipping, a gradient that is not finite, unused parameters, saved state."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from peftlab.distributed.fsdp import full_tensor, is_sharded, local_shard, shard_like, to_local
from peftlab.distributed.optimizer_step import OptimizerStep


def make_step(clip: float | None = None, learning_rate: float = 0.5) -> tuple[nn.Linear, OptimizerStep]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    return model, OptimizerStep(model, optimizer, Accelerator(cpu=True), clip=clip)


def test_the_returned_norm_is_that_before_clipping() -> None:
    model, step = make_step(clip=0.1, learning_rate=1.0)
    before = [p.detach().clone() for p in model.parameters()]
    step.backward(model(torch.ones(1, 3)).sum())
    assert step.step() == pytest.approx((2 * 3 + 2) ** 0.5)
    update = torch.cat([(p - old).flatten() for p, old in zip(model.parameters(), before, strict=True)])
    assert float(update.detach().norm()) == pytest.approx(0.1, rel=1e-4)


def test_a_gradient_that_is_not_finite_updates_nothing() -> None:
    model, step = make_step()
    before = [p.detach().clone() for p in model.parameters()]
    step.backward(model(torch.full((1, 3), torch.inf)).sum())
    assert not torch.isfinite(torch.tensor(step.step()))
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_a_parameter_without_a_gradient_is_unused() -> None:
    model, step = make_step()
    step.backward((model.weight * 2).sum())
    assert step.gradient(model.bias) is None
    step.step()
    assert step.unused() == [model.bias]


def test_restored_state_continues_bit_identically() -> None:
    def train(model: nn.Linear, step: OptimizerStep) -> None:
        step.backward(model(torch.ones(1, 3)).square().sum())
        step.step()
        step.zero_grad()

    model, step = make_step()
    train(model, step)
    resumed, resumed_step = make_step()
    resumed.load_state_dict(model.state_dict())
    resumed_step.load_state({name: tensor.clone() for name, tensor in step.state().items()})  # as read from a file
    for pair in ((model, step), (resumed, resumed_step)):
        train(*pair)
    assert torch.equal(model.weight, resumed.weight)


def test_a_model_that_is_not_sharded_is_returned_as_it_is() -> None:
    model, step = make_step()
    assert not is_sharded(model)
    assert step.forward is model
    assert full_tensor(model.weight).data_ptr() == model.weight.data_ptr()
    assert local_shard(model.weight).data_ptr() == to_local(model.weight).data_ptr() == model.weight.data_ptr()
    tensor = torch.ones(2, 3)
    assert shard_like(tensor, model.weight) is tensor
