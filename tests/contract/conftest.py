"""Trains every combination of method, precision and family once; the tests examine the result."""

from __future__ import annotations

import copy
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.contract import bases
from tests.contract.bases import REFUSED, STEPS, SUPPORTED, Combination, Trained, coordinates
from tests.sampling import sampled


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bases")
    bases.make_bases(path)
    return path


@pytest.fixture(scope="session")
def fresh(folder: Path) -> Callable[[str, str], PreTrainedModel]:
    """Makes a new copy of a base: `fresh(family, precision)`."""
    cache: dict[tuple[str, str], PreTrainedModel] = {}

    def get(family: str, precision: str) -> PreTrainedModel:
        if (family, precision) not in cache:
            cache[family, precision] = bases.load(folder, family, precision)
        return copy.deepcopy(cache[family, precision])

    return get


@pytest.fixture(scope="module")
def trained(
    request: pytest.FixtureRequest,
    elsewhere: object,  # starts the other process early, so that it imports while this one trains
    fresh: Callable[[str, str], PreTrainedModel],
    tmp_path_factory: pytest.TempPathFactory,
) -> Trained:
    combination: Combination = request.param
    method, family = combination.method, combination.family
    base = fresh(family, combination.precision)
    plan = bases.plan(family)
    before = {name: (p, p.detach().clone()) for name, p in base.named_parameters()}
    head = {id(p) for name, (p, _) in before.items() if name.startswith(tuple(f"{part}." for part in plan.head))}
    torch.manual_seed(3)
    model = method.apply(base, plan)
    if method.modifies_base:
        before = {name: (p, p.detach().clone()) for name, (p, _) in before.items()}
    folder = tmp_path_factory.mktemp("adapter")
    snapshots = [_trainable(model)]
    optimizer = torch.optim.AdamW(method.parameter_groups(model, 1e-2, 0.0))
    for step in range(1, STEPS + 1):
        model.train()
        bases.loss(model(**bases.inputs(family)), family).backward()
        penalty = method.penalty(model)
        if penalty is not None:
            penalty.backward()
        optimizer.step()
        method.after_step(model, step)
        optimizer.zero_grad()
        if step == 3:
            evaluated = bases.logits(model, family)
            snapshots.append(_trainable(model))
            (folder / "halfway").mkdir()
            method.save(model, folder / "halfway")
    snapshots.append(_trainable(model))
    model.eval()
    (folder / "saved").mkdir()
    method.save(model, folder / "saved")
    return Trained(combination, method, model, before, head, snapshots, evaluated, folder / "halfway", folder / "saved")


@pytest.fixture(scope="session")
def elsewhere(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Trained], Tensor]]:
    """Logits of a saved adapter, computed in another process that has trained nothing."""
    from safetensors.torch import load_file

    answers = tmp_path_factory.mktemp("answers")
    process = subprocess.Popen(
        [sys.executable, bases.__file__, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(answers / "errors").open("w"),
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def ask(trained: Trained) -> Tensor:
        combination = trained.combination
        answer = answers / f"{combination}.safetensors"
        request = {
            **{"kind": combination.kind, "settings": combination.settings, "family": combination.family},
            **{"precision": combination.precision, "adapter": str(trained.saved), "answer": str(answer)},
        }
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n", (answers / "errors").read_text()[-2000:]
        return load_file(answer)["logits"]

    yield ask
    process.stdin.close()
    process.wait(timeout=30)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "trained" in metafunc.fixturenames:
        metafunc.parametrize("trained", sampled(SUPPORTED, coordinates), ids=str, indirect=True, scope="module")
    if "supported" in metafunc.fixturenames:
        metafunc.parametrize("supported", sampled(SUPPORTED, coordinates), ids=str)
    if "refused" in metafunc.fixturenames:
        metafunc.parametrize("refused", REFUSED, ids=str)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the CPU time and peak memory of the tests, including the reloading process."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(each.ru_utime + each.ru_stime for each in used)
    peaks = " and ".join(f"{each.ru_maxrss / 2**10:.0f}" for each in used if each.ru_maxrss)
    terminalreporter.write_line(f"contract: {seconds:.0f} s of CPU, at most {peaks} MiB resident (tests, reloading)")


def _trainable(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
