"""Every optimizer: its update next to a reference, the bytes of its state, and state that is stored and restored."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from pydantic import ValidationError
from torch import nn

from peftlab.distributed.optimizer_step import OptimizerStep
from peftlab.errors import UserError
from peftlab.optimizers import OPTIMIZERS
from peftlab.optimizers.adafactor import Adafactor
from peftlab.optimizers.adamw import AdamW
from peftlab.optimizers.bitsandbytes_adamw import AdamW8bit, PagedAdamW
from peftlab.optimizers.muon import Muon, hidden_matrices
from peftlab.optimizers.optimizer import Optimizer, OptimizerPlan
from peftlab.optimizers.schedule_free import ScheduleFreeAdamW
from peftlab.profiling.memory import tensor_bytes
from peftlab.training.settings import Training

needs_schedulefree = pytest.mark.skipif(importlib.util.find_spec("schedulefree") is None, reason="needs schedulefree")
KINDS = [
    pytest.param(kind, marks=needs_schedulefree if part.averages else ()) for kind, part in sorted(OPTIMIZERS.items())
]


class Layers(nn.Module):
    """Embedding, two layers and head: matrices with more and fewer than 4,096 elements, vectors, one frozen matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 32)
        self.layers = nn.ModuleList([nn.Linear(32, 160), nn.Linear(160, 32)])
        self.position = nn.ModuleList([nn.Embedding(4, 32)])
        self.head = nn.Linear(32, 3)
        self.embedding.requires_grad_(False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.embedding(ids) + self.position[0](ids % 4)
        hidden = hidden + self.layers[1](torch.tanh(self.layers[0](hidden)))
        logits: torch.Tensor = self.head(hidden)
        return logits


def groups(model: nn.Module, learning_rate: float = 1e-2, weight_decay: float = 0.1) -> list[dict[str, Any]]:
    """Decayed matrices, vectors with another rate: as a method and layer-wise rates give them."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > 1], "lr": learning_rate, "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "lr": learning_rate / 2, "weight_decay": 0.0},
    ]


def made(optimizer: Optimizer, model: nn.Module, **settings: Any) -> torch.optim.Optimizer:
    return optimizer.make(
        OptimizerPlan(
            model=model,
            groups=groups(model, **settings),
            betas=(0.9, 0.999),
            epsilon=1e-8,
            device=torch.device("cpu"),
        )
    )


def model() -> Layers:
    torch.manual_seed(0)
    return Layers()


def step(model: nn.Module, optimizer: torch.optim.Optimizer | OptimizerStep, seed: int) -> None:
    ids = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(seed))
    nn.functional.cross_entropy(model(ids).flatten(0, 1), (ids % 3).flatten()).backward()
    optimizer.step()
    optimizer.zero_grad()


def after(steps: int, optimizer: Optimizer, **settings: Any) -> dict[str, torch.Tensor]:
    trained = model()
    torch_optimizer = made(optimizer, trained, **settings)
    for seed in range(steps):
        step(trained, torch_optimizer, seed)
    return {name: p.detach() for name, p in trained.named_parameters()}


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("kind", KINDS)
def test_the_stated_bytes_are_those_of_the_state(kind: str) -> None:
    trained = model()
    optimizer = made(OPTIMIZERS[kind](kind=kind), trained)
    step(trained, optimizer, 0)
    tensors = [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    ]
    assert OPTIMIZERS[kind](kind=kind).state_bytes(trained) == tensor_bytes(tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_stored_and_restored_it_continues_bit_identically(kind: str) -> None:
    """Groups, numbers and tensors go through JSON and copies, as through a checkpoint's files."""

    def start() -> tuple[Layers, OptimizerStep]:
        fresh = model()
        return fresh, OptimizerStep(fresh, made(OPTIMIZERS[kind](kind=kind), fresh), Accelerator(cpu=True), clip=0.1)

    whole, whole_step = start()
    for seed in range(3):
        step(whole, whole_step, seed)
    resumed, resumed_step = start()
    resumed.load_state_dict(whole.state_dict())
    numbers = [
        {n: v for n, v in g.items() if isinstance(v, (bool, int, float))} for g in whole_step.optimizer.param_groups
    ]
    resumed_step.load_state({name: tensor.clone() for name, tensor in whole_step.state().items()})
    for group, stored in zip(resumed_step.optimizer.param_groups, json.loads(json.dumps(numbers)), strict=True):
        group.update(stored)
    for seed in range(3, 6):
        step(whole, whole_step, seed)
        step(resumed, resumed_step, seed)
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert resumed_step.unused() == whole_step.unused() == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_stored_state_is_tensors_that_share_no_memory(kind: str) -> None:
    trained = model()
    optimizer_step = OptimizerStep(
        trained, made(OPTIMIZERS[kind](kind=kind), trained), Accelerator(cpu=True), clip=None
    )
    step(trained, optimizer_step, 0)
    state = optimizer_step.state()
    assert len({tensor.untyped_storage().data_ptr() for tensor in state.values()}) == len(state)


def test_float32_state_of_bitsandbytes_updates_as_torch_does() -> None:
    assert distance(after(5, PagedAdamW()), after(5, AdamW())) < 1e-6


def test_8_bit_state_stays_near_adamw_and_that_of_small_tensors_is_float32() -> None:
    eight_bit, reference = after(5, AdamW8bit()), after(5, AdamW())
    large = {name for name, tensor in reference.items() if tensor.numel() >= 4096}
    assert large == {"layers.0.weight", "layers.1.weight"}
    first = after(1, AdamW8bit()), after(1, AdamW())  # later gradients differ, too
    assert all(torch.allclose(first[0][name], first[1][name], atol=1e-7) for name in reference.keys() - large)
    away = distance(eight_bit, reference)
    assert 1e-6 < away < 1e-2


def test_adafactor_with_a_scale_of_one_is_that_of_transformers_without_scaling() -> None:
    other = model()
    reference = transformers.Adafactor(groups(other), scale_parameter=False, relative_step=False, clip_threshold=1.0)
    for seed in range(5):
        step(other, reference, seed)
    ours = after(5, Adafactor())
    assert distance(ours, {name: p.detach() for name, p in other.named_parameters()}) < 2e-5
    start = dict(model().named_parameters())
    moved = {name: float((ours[name] - start[name]).detach().norm()) for name in ours}
    paper = after(5, Adafactor(minimum_scale=1e-3))
    assert all(float((paper[n] - start[n]).detach().norm()) < moved[n] / 4 for n in moved if "layers" in n)


def test_muon_trains_the_matrices_of_layers_and_adamw_the_rest() -> None:
    trained = model()
    names = {id(p): name for name, p in trained.named_parameters()}
    assert [names[id(p)] for p in hidden_matrices(trained)] == ["layers.0.weight", "layers.1.weight"]
    ours, adamw = after(1, Muon()), after(1, AdamW())
    for name in ours:
        assert torch.equal(ours[name], adamw[name]) == (name not in ("layers.0.weight", "layers.1.weight")), name

    matrices = list(hidden_matrices(trained))
    alone = torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    step(trained, alone, 0)
    assert all(torch.equal(p, ours[names[id(p)]]) for p in matrices)


def test_muon_without_a_matrix_inside_layers_is_refused() -> None:
    trained = model()
    for p in hidden_matrices(trained):
        p.requires_grad_(False)
    with pytest.raises(UserError, match="muon: no matrix inside the model's layers is trained; use adamw"):
        made(Muon(), trained)


@needs_schedulefree
def test_schedule_free_evaluates_the_average_and_trains_on_bit_identically() -> None:
    from schedulefree import AdamWScheduleFreeReference

    trained, other = model(), model()
    optimizer = made(ScheduleFreeAdamW(), trained)
    reference = AdamWScheduleFreeReference(groups(other), betas=(0.9, 0.999), eps=1e-8)
    reference.train()
    for seed in range(5):
        step(trained, optimizer, seed)
        step(other, reference, seed)
        before = copy.deepcopy(trained.state_dict())
        reference.eval()
        with ScheduleFreeAdamW().evaluation_weights(optimizer):
            average = [p.detach().clone() for p in trained.parameters()]
        for x, expected, y in zip(average, other.parameters(), before.values(), strict=True):
            assert torch.allclose(x, expected, atol=1e-6)
            assert seed == 0 or not x.requires_grad or not torch.equal(x, y)
        reference.train()
        assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    ScheduleFreeAdamW().finish(optimizer)
    assert all(torch.equal(p, x) for p, x in zip(trained.parameters(), average, strict=True))


def test_without_its_package_schedule_free_is_refused_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(UserError, match=r'schedulefree is not installed: pip install "peftlab\[schedule-free\]"'):
        ScheduleFreeAdamW().check_installed()


@pytest.mark.parametrize(
    ("optimizer", "device", "says"),
    [
        ("adamw", "cpu", None),
        (
            "adamw_8bit",
            "cpu",
            "5 of 7 trained tensors (419 of 10,659 elements) have fewer than 4,096 elements and keep",
        ),
        ("paged_adamw", "cpu", "on a CPU the state is not paged"),
        (
            "paged_adamw",
            "cuda",
            "7 of 7 trained tensors (10,659 of 10,659 elements) have fewer than 100,000 elements and a state that",
        ),
        ("adafactor", "cpu", "3 of 7 trained tensors (195 of 10,659 elements) are vectors"),
        ("muon", "cpu", "5 of 7 trained tensors (419 of 10,659 elements) are not matrices inside the model's layers"),
    ],
)
def test_what_happens_to_small_tensors_is_said(optimizer: str, device: str, says: str | None) -> None:
    remark = OPTIMIZERS[optimizer](kind=optimizer).remark(model(), device)
    assert remark is None if says is None else says in (remark or "")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"optimizer": "adafactor", "adam_betas": [0.8, 0.9]}, "adam_betas: optimizer: adafactor does not use it"),
        ({"optimizer": "adafactor", "adam_epsilon": 1e-6}, "adam_epsilon: optimizer: adafactor does not use it"),
        ({"optimizer": "schedule_free_adamw"}, "schedule: linear: optimizer: schedule_free_adamw averages"),
        ({"optimizer": {"kind": "adamw", "momentum": 0.9}}, "momentum"),
    ],
)
def test_a_key_that_the_optimizer_does_not_use_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Training.model_validate_json(json.dumps(settings))
