"""Every optimizer: a run that was killed resumes to the same bits, and shards train as one process or are refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from peftlab.optimizers import OPTIMIZERS
from peftlab.recipe import load_recipe
from tests.faults.conftest import KILLED, Lab, both, finished, one_line
from tests.faults.sharding import check_resuming_recipe

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
SCHEDULE_FREE = importlib.util.find_spec("schedulefree") is not None
LORA = {"kind": "lora", "rank": 64, "dropout": 0.1}  # rank x width is 4,096: from there on 8-bit state
OPTIONS = {
    "LoRA+ with clipping and accumulation": (
        f"method={json.dumps({**LORA, 'b_rate_ratio': 8.0})}",
        "training.clip=0.05",
        "training.accumulation=2",
    ),
    "layer decay": ("method=full", "training.layer_decay=0.5"),
    "AdaLoRA": ('method={"kind": "adalora", "initial_rank": 6, "target_rank": 3, "pruning_interval": 1}',),
}


def optimizer(kind: str) -> tuple[str, ...]:
    """Overrides that select it."""
    constant = ("training.schedule=constant",) if OPTIMIZERS[kind].averages else ()
    return (f"training.optimizer={kind}", *constant)


INSTALLED = [kind for kind, part in OPTIMIZERS.items() if SCHEDULE_FREE or not part.averages]
CELLS = [
    (kind, options)
    for options in OPTIONS
    for kind in INSTALLED
    if not (OPTIMIZERS[kind].averages and options == "AdaLoRA")
]


def _often(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.slow if kind in ("adamw_8bit", "muon") else pytest.mark.night


def marked(number: int, kind: str) -> tuple[pytest.MarkDecorator, ...]:
    """Two cells on every change, nine more in the slow tests, all of them at night."""
    if number < len(INSTALLED):
        return () if kind in ("paged_adamw_8bit", "schedule_free_adamw") else (pytest.mark.slow,)
    return (_often(kind),)


@pytest.mark.parametrize(
    ("kind", "options"), [pytest.param(*cell, marks=marked(number, cell[0])) for number, cell in enumerate(CELLS)]
)
def test_killed_and_resumed_it_ends_in_the_same_bits(kind: str, options: str, lab: Lab, output: Path) -> None:
    """Killed after an evaluation that kept a best state, and in the middle of an epoch."""
    recipe = (*optimizer(kind), *OPTIONS[options])
    reference = lab.uninterrupted(*recipe)
    assert kind == "adamw" or reference.digest != lab.uninterrupted(*OPTIONS[options]).digest
    words = [*lab.words(output, *recipe), "--checkpoint-every", "1", "--resume"]
    assert lab.server.run(*words, faults=[["kill_at_step", 5]]).code == KILLED
    resumed = lab.server.run(*words)
    assert resumed.code == 0, resumed.err
    after = finished(output)
    assert (after.digest, after.predictions) == (reference.digest, reference.predictions)
    assert after.result.curve == reference.result.curve


SHARDED = [kind for kind in INSTALLED if OPTIMIZERS[kind].shards]


@pytest.mark.parametrize("kind", [kind for kind in SHARDED if kind != "adamw"])
@pytest.mark.parametrize(
    "method", [pytest.param("lora", marks=pytest.mark.slow), pytest.param("full", marks=pytest.mark.night)]
)
def test_shards_train_as_one_process_and_resume_bit_identically(kind: str, method: str, lab: Lab, output: Path) -> None:
    recipe = (f"method={method}", "training.dropout=0.0", "training.learning_rate=5e-3", *optimizer(kind))
    one = lab.uninterrupted(*recipe).result
    alone = output.with_name(f"{output.name}-two")
    done = both(lab, lab.words(alone, *recipe), **FSDP)
    assert [d.code for d in done] == [0, 0], done
    two = finished(alone).result
    assert two.curve.losses == pytest.approx(one.curve.losses, abs=1e-4)
    assert two.metrics == one.metrics
    check_resuming_recipe(recipe, lab, output, **FSDP)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=_often(kind)) for kind in INSTALLED])
def test_replicas_train_as_one_process(kind: str, lab: Lab, output: Path) -> None:
    recipe = ("method=full", "training.dropout=0.0", "training.learning_rate=5e-3", *optimizer(kind))
    one = lab.uninterrupted(*recipe).result
    done = both(lab, lab.words(output, *recipe))
    assert [d.code for d in done] == [0, 0], done
    two = finished(output).result
    assert two.curve.losses == pytest.approx(one.curve.losses, abs=1e-4)
    assert two.metrics == one.metrics


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_sharding_that_an_optimizer_does_not_know_is_refused(kind: str, lab: Lab) -> None:
    recipe = load_recipe(lab.folder / "tiny.yaml", optimizer(kind))
    shards, partitions = (OPTIMIZERS[kind].shards, OPTIMIZERS[kind].partitions)
    fsdp, zero = (recipe.incompatible_with("bert", sharded=True), recipe.incompatible_with("bert", zero_stage=2))
    assert (fsdp is None) == shards == (kind in ("adamw", "muon", "schedule_free_adamw"))
    assert (zero is None) == partitions == (kind == "adamw")


def test_a_run_with_a_refused_optimizer_ends_with_one_line(lab: Lab, output: Path) -> None:
    done = both(lab, lab.words(output, *optimizer("adamw_8bit")), **FSDP)
    assert [d.code for d in done] == [2, 2]
    assert "FSDP: training.optimizer: 8-bit AdamW does not update tensors that FSDP shards" in one_line(done[0].err)


def test_adalora_without_the_weights_that_it_pruned_is_refused(lab: Lab, output: Path) -> None:
    done = lab.server.run(*lab.words(output, *optimizer("schedule_free_adamw"), "method=adalora"))
    assert done.code == 2
    assert "AdaLoRA prunes by setting weights to 0 after a step, and an average" in one_line(done.err)


def test_a_run_says_what_happens_to_small_tensors(lab: Lab, output: Path) -> None:
    done = lab.server.run(*lab.words(output, "training.optimizer=paged_adamw_8bit", "training.steps=1"))
    assert done.code == 0, done.err
    (line,) = [line for line in done.out.splitlines() if line.startswith("optimizer")]
    assert "elements) have fewer than 4,096 elements and keep a float32 state; on a CPU the state is not paged" in line
