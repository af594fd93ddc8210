"""What the tests of FSDP2 and of DeepSpeed share: recipes that two processes train as one does, and two checks."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.contract.bases import Combination
from tests.faults.conftest import COMBINATIONS, KILLED, Lab, both, finished, overrides

COMPILER = shutil.which("g++")
NO_COMPILER = "DeepSpeed compiles its operations on a CPU, which needs g++"


def recipe_of(combination: Combination) -> tuple[str, ...]:
    """Overrides without dropout, whose random numbers differ between one process and two."""
    method, _ = overrides(combination)
    storage = '{"kind": "nf4", "storage": "float32"}' if combination.precision == "nf4" else "none"
    method = method.replace('"dropout": 0.1', '"dropout": 0.0')
    return (method, f"quantization={storage}", "training.dropout=0.0", "training.learning_rate=5e-3")


def check_the_saved_model(lab: Lab, output: Path, **place: str) -> None:
    """Two processes save the unsharded model that a single one saves."""
    recipe = recipe_of(next(c for c in COMBINATIONS if str(c) == "full-none-encoder"))
    alone = output.with_name(f"{output.name}-alone")
    assert lab.server.run(*lab.words(alone, *recipe)).code == 0
    done = both(lab, lab.words(output, *recipe), **place)
    assert [d.code for d in done] == [0, 0], done
    one, other = (load_file(next(folder.rglob("model.safetensors"))) for folder in (alone, output))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        # The bias does not affect attention: its gradient is rounding error, which Adam magnifies.
        if not name.endswith(".key.bias"):
            torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-4, msg=name)


def check_resuming(combination: Combination, lab: Lab, output: Path, **place: str) -> None:
    """Two processes that were killed resume, with dropout, to the bits of two that were not."""
    method, _ = overrides(combination)
    check_resuming_recipe((method, recipe_of(combination)[1]), lab, output, **place)


def check_resuming_recipe(recipe: tuple[str, ...], lab: Lab, output: Path, **place: str) -> None:
    """As `check_resuming`, with these overrides."""
    reference = output.with_name(f"{output.name}-reference")
    assert [d.code for d in both(lab, lab.words(reference, *recipe), **place)] == [0, 0]
    words = [*lab.words(output, *recipe), "--checkpoint-every", "1", "--resume"]
    kill = [["kill_at_step", 5]]
    assert [d.code for d in both(lab, words, {0: kill, 1: kill}, **place)] == [KILLED, KILLED]
    done = both(lab, words, **place)
    assert [d.code for d in done] == [0, 0], done
    assert "from step 4" in done[0].out
    assert finished(output).digest == finished(reference).digest
