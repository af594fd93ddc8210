"""SIGTERM and SIGINT in any phase: a checkpoint is saved, the exit code names the signal, no process is left."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from tests.faults.conftest import Lab, counted, finished, steps
from tests.sampling import slow_after

SIGNALS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
IDS = [name for _, _, name in SIGNALS]
NEVER = ("--checkpoint-every", "never")


@pytest.mark.parametrize(("sent", "code", "word"), SIGNALS, ids=IDS)
@pytest.mark.parametrize("step", slow_after(2, range(1, 9, counted(2, 1))))
def test_in_a_step_the_state_after_it_is_saved(
    step: int, sent: int, code: int, word: str, lab: Lab, output: Path
) -> None:
    words = [*lab.words(output), *NEVER]
    done = lab.server.run(*words, faults=[["signal_at_step", step, sent]])
    assert (done.code, done.err) == (code, f"{word}: step {step} is saved, --resume continues from it\n")
    assert [path.name for path in steps(output)] == [f"step-{step:08d}"]
    assert lab.server.run(*words, "--resume").code == 0
    after = finished(output)
    assert (after.digest, after.result.metrics) == (lab.uninterrupted().digest, lab.uninterrupted().result.metrics)


@pytest.mark.parametrize(("sent", "code", "word"), slow_after(1, SIGNALS), ids=IDS)
@pytest.mark.parametrize(
    ("call", "module", "name", "kept"),
    [
        (1, "peftlab.training.loop", "_Loop._evaluate", 3),
        (2, "peftlab.training.prediction", "split_batches", 6),  # in the second evaluation
        (4, "peftlab.training.prediction", "split_batches", 8),  # while the test split is scored
    ],
)
def test_in_an_evaluation_the_state_before_it_is_saved(
    call: int, module: str, name: str, kept: int, sent: int, code: int, word: str, lab: Lab, output: Path
) -> None:
    words = [*lab.words(output), *NEVER]
    done = lab.server.run(*words, faults=[["signal_at", call, sent, module, name]])
    assert (done.code, done.err) == (code, f"{word}: step {kept} is saved, --resume continues from it\n")
    assert lab.server.run(*words, "--resume").code == 0
    after = finished(output)
    assert (after.digest, after.predictions) == (lab.uninterrupted().digest, lab.uninterrupted().predictions)
    assert after.result.curve == lab.uninterrupted().result.curve


@pytest.mark.parametrize(("sent", "code", "word"), SIGNALS, ids=IDS)
def test_in_a_save_the_save_and_one_step_are_finished(sent: int, code: int, word: str, lab: Lab, output: Path) -> None:
    words = [*lab.words(output), "--checkpoint-every", "2"]
    done = lab.server.run(*words, faults=[["signal_at", 1, sent, "peftlab.training.checkpointing", "save_file"]])
    assert (done.code, done.err) == (code, f"{word}: step 3 is saved, --resume continues from it\n")
    assert [path.name for path in steps(output)] == ["step-00000002", "step-00000003"]
    assert lab.server.run(*words, "--resume").code == 0
    assert finished(output).digest == lab.uninterrupted().digest


@pytest.mark.parametrize(("sent", "code", "word"), SIGNALS, ids=IDS)
@pytest.mark.parametrize(
    "place",
    [
        "loading.inputs.load_tokenizer",
        "loading.inputs.load_base",
        "runs.initial_adapter.apply_method",
        "runs.launch.init_accelerator",
    ],
)
def test_before_training_it_ends_at_once(place: str, sent: int, code: int, word: str, lab: Lab, output: Path) -> None:
    module, _, name = place.rpartition(".")
    done = lab.server.run(*lab.words(output), faults=[["signal_at", 1, sent, f"peftlab.{module}", name]])
    assert (done.code, done.err) == (code, f"{word}: nothing new was saved\n")
    assert list(output.glob("tiny/[!.]*")) == []


@pytest.fixture(scope="module")
def seconds(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> float:
    """Seconds that an uninterrupted run takes."""
    words = [*lab.words(tmp_path_factory.mktemp("undisturbed")), "--checkpoint-every", "1"]
    started = time.monotonic()
    assert lab.server.run(*words).code == 0
    return time.monotonic() - started


@pytest.mark.parametrize("number", slow_after(2, range(counted(5, 360))))
def test_at_any_time_it_ends_with_a_line_and_resumes_bit_identically(
    number: int, seconds: float, lab: Lab, output: Path
) -> None:
    """At a random time, in whatever phase."""
    draw = random.Random(number)
    sent, code, word = draw.choice(SIGNALS)
    words = [*lab.words(output), "--checkpoint-every", "1"]
    running = lab.server.start(*words)
    time.sleep(draw.uniform(0.05, 1.1) * seconds)
    running.send(sent)
    done = running.wait()
    kept = [f"{word}: step {step} is saved, --resume continues from it\n" for step in range(1, 9)]
    assert (done.code, done.err) == (0, "") or (
        done.code == code and done.err in (f"{word}: nothing new was saved\n", *kept)
    )
    assert (done.err in kept) is (steps(output) != [])
    assert lab.server.run(*words, "--resume").code == 0
    assert finished(output).digest == lab.uninterrupted().digest


@pytest.mark.parametrize(("sent", "code", "word"), SIGNALS, ids=IDS)
def test_while_the_result_is_written_writing_is_finished(
    sent: int, code: int, word: str, lab: Lab, output: Path
) -> None:
    assert (
        lab.server.run(*lab.words(output), faults=[["signal_at", 1, sent, "peftlab.runs.run", "write_result"]]).code
        == 0
    )
    assert finished(output).digest == lab.uninterrupted().digest


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("second", "code", "word"), SIGNALS, ids=IDS)
@pytest.mark.parametrize("step", slow_after(1, [5, 1]))
def test_a_second_signal_ends_it_at_once(
    step: int, first: int, second: int, code: int, word: str, lab: Lab, output: Path
) -> None:
    words = [*lab.words(output), "--checkpoint-every", "1"]
    done = lab.server.run(*words, faults=[["signal_at_step", step, first, second]])
    assert (done.code, done.err) == (code, "")
    assert len(steps(output)) == min(step - 1, 2)
    assert lab.server.run(*words, "--resume").code == 0
    assert finished(output).digest == lab.uninterrupted().digest


def test_before_training_an_earlier_checkpoint_stays(lab: Lab, output: Path) -> None:
    words = [*lab.words(output), *NEVER, "--resume"]
    assert lab.server.run(*words, faults=[["signal_at_step", 4, signal.SIGINT]]).code == 130
    loading = ["signal_at", 1, signal.SIGINT, "peftlab.loading.inputs", "load_base"]
    assert lab.server.run(*words, faults=[loading]).code == 130
    assert lab.server.run(*words, faults=[["signal_at_step", 1, signal.SIGINT]]).code == 130
    assert [path.name for path in steps(output)] == ["step-00000004", "step-00000005"]
    assert lab.server.run(*words).code == 0
    assert finished(output).digest == lab.uninterrupted().digest
