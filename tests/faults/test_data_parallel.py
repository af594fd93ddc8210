"""Two data-parallel processes train as one does, resume bit-identically, and end if one of them fails or hangs."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from peftlab.models.byte_tokenizer import byte_tokenizer
from tests.contract.bases import Combination, tiny
from tests.faults.conftest import COMBINATIONS, KILLED, NIGHT, Lab, Trained, both, finished, overrides, steps, two
from tests.sampling import sampled

EVERY = ("--checkpoint-every", "1", "--resume")
LOST = "another process of this run ended, or did not answer"
SOME = [c for c in COMBINATIONS if str(c) in ("lora-nf4-encoder", "adalora-none-encoder", "full-none-encoder")]


def uninterrupted(lab: Lab, *recipe: str) -> Trained:
    """Outputs of an uninterrupted run in two processes."""
    key = ("two processes", *recipe)
    if key not in lab.cache:
        output = lab.folder / f"two-{len(lab.cache)}"
        done = both(lab, lab.words(output, *recipe))
        assert [d.code for d in done] == [0, 0], done
        lab.cache[key] = finished(output)
    return lab.cache[key]


@pytest.mark.parametrize("combination", COMBINATIONS if NIGHT else SOME, ids=str)
def test_two_processes_train_as_one(combination: Combination, lab: Lab) -> None:
    recipe = tuple(word.replace('"dropout": 0.1', '"dropout": 0.0') for word in overrides(combination))
    # At a rate of 2e-2 rounding differences grow to 6e-5, in one process too.
    recipe = (*recipe, "training.dropout=0.0", "training.learning_rate=5e-3")
    one, other = lab.uninterrupted(*recipe).result, uninterrupted(lab, *recipe).result
    assert other.environment.processes == 2
    assert other.curve.losses == pytest.approx(one.curve.losses, abs=1e-5)
    assert other.metrics == one.metrics
    assert other.cost.tokens == one.cost.tokens


@pytest.mark.parametrize("method", ["full", "bitfit"])
def test_two_processes_train_a_base_with_unused_parameters(method: str, lab: Lab) -> None:
    folder = lab.folder / "squeezebert"
    if not folder.exists():
        model = tiny("squeezebert", "AutoModel", vocab_size=512, embedding_size=64)
        model.save_pretrained(folder)
        byte_tokenizer(model.config).save_pretrained(folder)
    recipe = (f"method={method}", "model=squeezebert", "training.dropout=0.0")
    one, other = lab.uninterrupted(*recipe).result, uninterrupted(lab, *recipe).result
    assert other.unused == one.unused
    assert "transformer.pooler.dense.bias" in one.unused
    assert other.curve.losses == pytest.approx(one.curve.losses, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("combination", COMBINATIONS if NIGHT else SOME[:2], ids=str)
def test_both_killed_they_resume_bit_identically(combination: Combination, lab: Lab, output: Path) -> None:
    recipe = overrides(combination)
    words = [*lab.words(output, *recipe), *EVERY]
    kill = [["kill_at_step", 5]]
    assert [d.code for d in both(lab, words, {0: kill, 1: kill})] == [KILLED, KILLED]
    done = both(lab, words)
    assert [d.code for d in done] == [0, 0], done
    assert "from step 4" in done[0].out
    assert done[1].out == ""
    assert finished(output).digest == uninterrupted(lab, *recipe).digest


# At which step, evaluation or save, from 1: on every change, and over night.
GONE = [
    *(["kill_at_step", number] for number in (range(2, 9) if NIGHT else [5])),
    *(["raise_at_step", number] for number in (range(2, 9) if NIGHT else [5])),
    *(
        ["signal_at", number, signal.SIGKILL, "peftlab.training.prediction", "split_batches"]
        for number in (range(1, 5) if NIGHT else [2])
    ),
    *(
        ["signal_at", number, signal.SIGKILL, "peftlab.training.checkpoint_callback", "CheckpointCallback.on_save"]
        for number in (range(2, 8) if NIGHT else [2])
    ),
]


@pytest.mark.parametrize(
    ("fault", "victim"),
    sampled([(fault, victim) for fault in GONE for victim in (0, 1)], lambda cell: (str(cell[0]), cell[1]), strength=1),
    ids=lambda value: (
        value if isinstance(value, int) else f"{value[-1] if value[0] == 'signal_at' else value[0]}-{value[1]}"
    ),
)
def test_if_one_process_dies_the_other_ends_with_one_line(
    fault: list[Any], victim: int, lab: Lab, output: Path
) -> None:
    words = [*lab.words(output), *EVERY]
    started = time.monotonic()
    done = both(lab, words, {victim: [fault]})
    assert done[victim].code in (KILLED, 1)
    other = done[1 - victim]
    assert other.code == 5, other
    assert LOST in other.err
    assert len(other.err.splitlines()) == 1
    assert time.monotonic() - started < 60  # includes loading on a busy machine
    assert steps(output)
    assert [d.code for d in both(lab, words)] == [0, 0]
    assert finished(output).digest == uninterrupted(lab).digest


@pytest.mark.slow
def test_if_one_process_hangs_the_other_ends_after_the_time_limit(lab: Lab, output: Path) -> None:
    words = [*lab.words(output), *EVERY, "--process-timeout", "0.1"]
    first, second = two(lab, words, {1: [["hang_at_step", 5]]})
    done = first.wait()
    assert (done.code, LOST in done.err) == (5, True)
    second.send(signal.SIGTERM)  # as a launcher does
    time.sleep(0.5)  # pending signals of one kind are merged
    second.send(signal.SIGTERM)
    assert second.wait().code == 143
    assert [d.code for d in both(lab, [*lab.words(output), *EVERY])] == [0, 0]
    assert finished(output).digest == uninterrupted(lab).digest


@pytest.mark.parametrize("signaled", [(0,), (1,), (0, 1)], ids=str)
def test_a_signal_to_any_process_ends_both_with_one_checkpoint(
    signaled: tuple[int, ...], lab: Lab, output: Path
) -> None:
    words = [*lab.words(output), "--checkpoint-every", "never"]
    done = both(lab, words, {rank: [["signal_at_step", 4, signal.SIGTERM]] for rank in signaled})
    assert [d.code for d in done] == [143, 143], done
    assert [d.err for d in done] == ["terminated: step 4 is saved, --resume continues from it\n", ""]
    assert [path.name for path in steps(output)] == ["step-00000004"]
    assert [d.code for d in both(lab, [*words, "--resume"])] == [0, 0]
    assert finished(output).digest == uninterrupted(lab).digest


def test_one_process_refuses_the_checkpoint_of_two(lab: Lab, output: Path) -> None:
    words = [*lab.words(output), *EVERY]
    kill = [["kill_at_step", 5]]
    both(lab, words, {0: kill, 1: kill})
    done = lab.server.run(*words)
    assert done.code == 2
    assert "processes: 2 there, 1 here" in done.err


def test_bad_input_is_reported_by_one_process(lab: Lab, output: Path) -> None:
    done = both(lab, lab.words(output, "method.targets=[qery]"))
    assert [d.code for d in done] == [2, 2]
    assert "'qery' matches no linear layer" in done[0].err
    assert done[1].err == ""


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM is not supported"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "tensor or context parallelism is not supported"),
    ],
)
def test_an_unsupported_launcher_setting_is_refused_before_loading(
    environment: dict[str, str], says: str, lab: Lab, output: Path
) -> None:
    done = lab.server.run(*lab.words(output), **environment)
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert says in done.err
    assert done.out == ""


def test_auto_micro_batch_on_two_processes_is_refused(lab: Lab, output: Path) -> None:
    done = both(lab, lab.words(output, "training.auto_micro_batch=true"))
    assert [d.code for d in done] == [2, 2]
    assert "set training.accumulation instead" in done[0].err


def test_a_device_map_on_two_processes_is_refused(lab: Lab, output: Path) -> None:
    done = both(lab, [*lab.words(output), "--device-map", "auto"])
    assert [d.code for d in done] == [2, 2]
    assert "--device-map auto: places the model on the GPUs of one process, but there are 2 processes" in done[0].err


def test_a_device_map_is_refused_for_a_method_that_compares_layers(lab: Lab, output: Path) -> None:
    done = lab.server.run(*lab.words(output, 'method={"kind": "adalora"}'), "--device-map", "auto")
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "AdaLoRA compares the singular values of all layers" in done.err


def test_on_one_device_a_device_map_changes_nothing(lab: Lab, output: Path) -> None:
    done = lab.server.run(*lab.words(output), "--device-map", "auto")
    assert done.code == 0, done
    assert "there is one device only: --device-map has no effect" in done.out
    assert finished(output).digest == lab.uninterrupted().digest


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("combination", [c for c in SOME if c.kind != "adalora"], ids=str)
def test_a_device_map_trains_as_one_gpu(combination: Combination, lab: Lab, output: Path) -> None:
    words = lab.words(output / "spread", *overrides(combination))
    done = lab.server.run(*words, "--device-map", "auto", ACCELERATE_USE_CPU="false")
    assert done.code == 0, done
    assert "layers over" in done.out
    alone = lab.server.run(*lab.words(output / "alone", *overrides(combination)), ACCELERATE_USE_CPU="false")
    assert alone.code == 0, alone
    losses = [finished(output / folder).result.curve.losses for folder in ("spread", "alone")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
