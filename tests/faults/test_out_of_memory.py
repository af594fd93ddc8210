"""Out of memory: the error names estimate and remedy, and smaller micro-batches give the same update."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftlab.profiling.estimate import estimate_memory
from peftlab.profiling.profile import MIB
from peftlab.recipe import load_recipe
from peftlab.training import out_of_memory
from tests.contract.bases import Combination
from tests.faults.conftest import COMBINATIONS, KILLED, STEPS, Lab, counted, finished, one_line, overrides
from tests.sampling import slow_after

EVERY = ("--checkpoint-every", "1")


@pytest.mark.parametrize("step", slow_after(1, [1, 3, STEPS]))
def test_out_of_memory_reports_the_estimate_and_the_remedy(step: int, lab: Lab, output: Path) -> None:
    done = lab.server.run(*lab.words(output), faults=[["out_of_memory_at_step", step]])
    line = one_line(done.err)
    assert done.code == 4
    assert line.startswith(f"out of memory at step {step}, in micro-batches of up to 4 examples x ")
    assert "20.00 GiB more were requested; the process may use " in line
    assert "set training.auto_micro_batch: true, or a larger training.accumulation (the same update)" in line
    assert f"the state after step {step - 1} is saved" in line
    recipe = load_recipe(lab.folder / "tiny.yaml", [f"model={lab.folder / 'tiny'}"])
    estimate = estimate_memory(recipe, limit=None, devices=1, examples=None, length=None)
    assert estimate.needed is not None
    shapes = f"{estimate.micro_batch} x {estimate.length} tokens: {estimate.needed / MIB:,.0f} MiB ("
    assert f"estimated peak of a step in micro-batches of {shapes}" in line
    # The remedy changes the recipe but not the result, so that the checkpoint still fits.
    cured = lab.server.run(*lab.words(output, "training.auto_micro_batch=true"), "--resume")
    assert cured.code == 0, cured.err
    assert finished(output).digest == lab.uninterrupted().digest


@pytest.mark.parametrize("step", [3, 1][: counted(1, 2)])
@pytest.mark.parametrize("combination", slow_after(2, COMBINATIONS[:: counted(15, 1)]), ids=str)
def test_halved_micro_batches_retry_the_step_with_the_same_update(
    combination: Combination, step: int, lab: Lab, output: Path
) -> None:
    # At a rate of 2e-2 rounding differences grow: accumulation 2 alone ends 6e-5 away with rsLoRA.
    recipe = (
        *overrides(combination),
        "training.dropout=0.0",
        "training.auto_micro_batch=true",
        "training.learning_rate=5e-3",
    )
    recipe = tuple(word.replace('"dropout": 0.1', '"dropout": 0.0') for word in recipe)
    reference = lab.uninterrupted(*recipe).result
    done = lab.server.run(*lab.words(output, *recipe), *EVERY, faults=[["out_of_memory_at_step", step, 1]])
    assert done.code == 0, done.err
    assert f"out of memory at step {step}: retrying with accumulation 2" in done.out
    after = finished(output).result
    assert [(h.step, h.accumulation) for h in after.micro_batch_reductions] == [(step, 2), (step, 4)]
    assert after.curve.losses == pytest.approx(reference.curve.losses, abs=1e-5)
    assert after.metrics == reference.metrics


@pytest.mark.slow
def test_halved_micro_batches_stay_halved_when_resumed(lab: Lab, output: Path) -> None:
    words = [*lab.words(output, "training.auto_micro_batch=true"), *EVERY, "--resume"]
    short = [["out_of_memory_at_step", 3, 2]]
    assert lab.server.run(*words, faults=[*short, ["kill_at_step", 5]]).code == KILLED
    assert lab.server.run(*words).code == 0  # memory is sufficient again, but the bits must be the same
    again = finished(output)
    complete = lab.server.run(*lab.words(output / "complete", "training.auto_micro_batch=true"), faults=short)
    assert complete.code == 0, complete.err
    assert finished(output / "complete").digest == again.digest
    assert [(h.step, h.accumulation) for h in again.result.micro_batch_reductions] == [(3, 2)]


@pytest.mark.parametrize("step", slow_after(1, range(1, counted(2, STEPS) + 1)))
def test_a_single_example_that_does_not_fit_ends_the_run(step: int, lab: Lab, output: Path) -> None:
    words = lab.words(output, "training.auto_micro_batch=true")
    done = lab.server.run(*words, faults=[["out_of_memory_at_step", step, 0]])
    assert done.code == 4
    assert "in micro-batches of up to 1 example x " in one_line(done.err)
    assert "a micro-batch is one example already" in done.err


@pytest.mark.parametrize("automatic", slow_after(1, [False, True]))
def test_a_real_limit_of_the_address_space(automatic: bool, lab: Lab, output: Path) -> None:
    rows = [{"tokens": ["abcdef"] * 9, "labels": ["B-N", "I-N", "O"] * 3}] * 160
    (lab.folder / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = (
        *(f"data.{split}=long.jsonl" for split in ("train", "validation", "test")),
        *("training.batch_examples=160", "training.steps=4", f"training.auto_micro_batch={str(automatic).lower()}"),
    )
    done = lab.server.run(*lab.words(output, *recipe), faults=[["addresses_in_step", 1, 16]])
    assert "Traceback" not in done.err
    if automatic:
        assert done.code == 0, done.err
        assert finished(output).result.micro_batch_reductions
    else:
        assert done.code == 4, done.err
        assert one_line(done.err).startswith("out of memory at step 1, in micro-batches of up to 160 examples x ")


def test_out_of_memory_while_loading_is_one_line(lab: Lab, output: Path) -> None:
    done = lab.server.run(*lab.words(output), faults=[["out_of_memory_in_loading"]])
    assert done.code == 4
    assert one_line(done.err).startswith("out of memory outside of the training steps: 3.0 GiB more were requested")


def test_weights_that_cannot_be_mapped_are_reported_as_out_of_memory(lab: Lab, output: Path) -> None:
    done = lab.server.run(*lab.words(output), faults=[["weights_not_mapped"]])
    assert done.code == 4, done.err
    assert one_line(done.err).startswith("out of memory outside of the training steps: 87 MiB more were requested")


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "NCCL error: Cuda failure 2 'out of memory'",
        "NCCL error: Cuda failure 'out of memory'",
    ],
)
def test_each_out_of_memory_message_of_cuda_is_recognized(text: str) -> None:
    assert out_of_memory.is_out_of_memory(RuntimeError(text))
    assert not out_of_memory.is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
