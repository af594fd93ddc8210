"""A run killed at any point resumes to the same bits as an uninterrupted run."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from peftlab.results.result_file import read_result
from tests.contract.bases import Combination
from tests.faults.conftest import (
    COMBINATIONS,
    KILLED,
    STEPS,
    Lab,
    counted,
    finished,
    kind_and_quantization,
    overrides,
    steps,
)
from tests.sampling import sampled, slow_after

MIX = json.dumps(
    {
        "parts": [
            {
                "data": {"train": ["rows.jsonl"] * files, "validation": "rows.jsonl", "test": "rows.jsonl"},
                "weight": weight,
            }
            for files, weight in ((2, 1), (1, 1.6))
        ]
    }
)
EVERY = ("--checkpoint-every", "1", "--resume")


@pytest.mark.parametrize("combination", sampled(COMBINATIONS, kind_and_quantization, strength=1), ids=str)
def test_killed_in_mid_epoch_every_method_resumes_bit_identically(
    combination: Combination, lab: Lab, output: Path
) -> None:
    """20 examples in batches of 4: step 4 is in the middle of the first epoch, after an evaluation."""
    recipe = overrides(combination)
    reference = lab.uninterrupted(*recipe)
    words = [*lab.words(output, *recipe), *EVERY]
    killed = lab.server.run(*words, faults=[["kill_at_step", 5]])
    assert killed.code == KILLED, killed.err
    assert [path.name for path in steps(output)] == ["step-00000003", "step-00000004"]
    resumed = lab.server.run(*words)
    assert resumed.code == 0, resumed.err
    assert "resume     from step 4" in resumed.out
    after = finished(output)
    assert (after.digest, after.predictions) == (reference.digest, reference.predictions)
    assert after.result.metrics == reference.result.metrics
    assert after.result.curve == reference.result.curve
    assert [resume.step for resume in after.result.resumes] == [4]


@pytest.mark.parametrize(
    "recipe",
    [
        ("method=full", "training.layer_decay=0.5"),
        ("training.embedding_noise=5",),
        ("training.adversarial=1",),
        (f"data={MIX}",),
        ("method.train_tokens=[St, Main]",),
    ],
    ids=["layer decay", "NEFTune", "FGM", "weighted mix", "trained tokens"],
)
def test_training_options_resume_bit_identically(recipe: tuple[str, ...], lab: Lab, output: Path) -> None:
    reference = lab.uninterrupted(*recipe)
    assert reference.digest != lab.uninterrupted(*recipe[:-1]).digest  # the setting has an effect
    words = [*lab.words(output, *recipe), *EVERY]
    assert lab.server.run(*words, faults=[["kill_at_step", 5]]).code == KILLED
    resumed = lab.server.run(*words)
    assert resumed.code == 0, resumed.err
    after = finished(output)
    assert (after.digest, after.predictions, after.result.curve) == (
        reference.digest,
        reference.predictions,
        reference.result.curve,
    )


@pytest.mark.parametrize("method", slow_after(0, [{"rank": 4}, {"rank": 4, "initialization": "pissa"}]))
def test_a_training_that_starts_from_an_adapter_resumes_bit_identically(
    method: dict[str, Any], lab: Lab, output: Path
) -> None:
    recipe = (f"method={json.dumps({'kind': 'lora', **method})}",)
    start = output.with_name(f"{output.name}-start")
    assert lab.server.run(*lab.words(start, *recipe)).code == 0
    recipe = (*recipe, f"init_from={start / 'tiny'}", "training.learning_rate=1e-3")
    reference = lab.uninterrupted(*recipe)
    words = [*lab.words(output, *recipe), *EVERY]
    assert lab.server.run(*words, faults=[["kill_at_step", 5]]).code == KILLED
    resumed = lab.server.run(*words)
    assert resumed.code == 0, resumed.err
    after = finished(output)
    assert (after.digest, after.predictions) == (reference.digest, reference.predictions)
    assert after.result.init_from == reference.result.init_from


@pytest.mark.parametrize("number", slow_after(3, range(counted(16, 1000))))
def test_killed_at_any_time_the_newest_complete_checkpoint_is_found(number: int, lab: Lab, output: Path) -> None:
    """Killed by a timer up to three times, then run to the end."""
    draw = random.Random(number)
    recipe = overrides(draw.choice(COMBINATIONS))
    words = [*lab.words(output, *recipe), *EVERY]
    kills = 0
    while True:
        done = lab.server.run(*words, faults=[["kill_in_training_after", draw.uniform(0, 0.6)]] if kills < 3 else [])
        if done.code != -signal.SIGALRM:  # the timer kills as abruptly as SIGKILL
            break
        kills += 1
        assert "damaged" not in done.out
    assert done.code == 0, done.err
    assert finished(output).digest == lab.uninterrupted(*recipe).digest


@pytest.mark.parametrize("number", slow_after(2, range(counted(20, 200))))
def test_three_kills_two_of_them_in_one_epoch(number: int, lab: Lab, output: Path) -> None:
    draw = random.Random(number)
    recipe = overrides(draw.choice(COMBINATIONS))
    words = [*lab.words(output, *recipe), *EVERY]
    first = draw.randint(2, 3)
    for at in (first, 2, draw.randint(2, STEPS - first - 1)):  # each counted from where the one before was killed
        assert lab.server.run(*words, faults=[["kill_at_step", at]]).code == KILLED
    assert lab.server.run(*words).code == 0
    after = finished(output)
    assert after.digest == lab.uninterrupted(*recipe).digest
    assert len(after.result.resumes) == 3


@pytest.mark.parametrize("stride", slow_after(1, [4, 1]))
@pytest.mark.parametrize("combination", COMBINATIONS[:: counted(len(COMBINATIONS), 1)], ids=str)
def test_killed_at_each_file_operation_of_a_save(combination: Combination, stride: int, lab: Lab, output: Path) -> None:
    """The save is that of step 4: steps 2 and 3 exist, and 2 is then deleted."""
    recipe = overrides(combination)
    words = [*lab.words(output, *recipe), *EVERY]
    count = output.with_suffix(".count")
    assert lab.server.run(*words, faults=[["count_operations_of_save", 4, str(count)]]).code == 0
    operations = int(count.read_text())
    assert operations > 15
    finished(output)
    for number in range(1, operations + 1, stride):
        at = output / str(number)
        words = [*lab.words(at, *recipe), *EVERY]
        killed = lab.server.run(*words, faults=[["kill_at_operation_of_save", 4, number]])
        assert killed.code == KILLED, f"operation {number}: {killed.err}"
        resumed = lab.server.run(*words)
        assert resumed.code == 0, f"operation {number}: {resumed.err}"
        assert "damaged" not in resumed.out
        assert ("from step 3" in resumed.out) != ("from step 4" in resumed.out)
        assert finished(at).digest == lab.uninterrupted(*recipe).digest


def test_remains_of_a_killed_save_are_deleted_at_the_next_start(lab: Lab, output: Path) -> None:
    words = [*lab.words(output), *EVERY]
    assert lab.server.run(*words, faults=[["kill_at_operation_of_save", 4, 6]]).code == KILLED
    (debris,) = output.glob("tiny/*.checkpoints/.*")
    assert lab.server.run(*words, faults=[["kill_at_step", 1]]).code == KILLED
    assert not debris.exists()
    assert len(steps(output)) == 2


@pytest.mark.parametrize("where", slow_after(3, range(counted(6, 40))))
def test_killed_while_the_result_is_written_nothing_is_lost(where: int, lab: Lab, output: Path) -> None:
    words = [*lab.words(output), *EVERY]
    killed = lab.server.run(*words, faults=[["kill_while_publishing", 1 + 3 * where]])
    assert killed.code in (KILLED, 0)
    again = lab.server.run(*words)
    assert again.code == 0, again.err
    assert finished(output).digest == lab.uninterrupted().digest


MOVES = 8  # the old result and its checkpoints out of the way, the new one in, the rest deleted
DECISIVE = 5  # the one that gives the new result its name


@pytest.mark.parametrize("number", slow_after(3, [1, DECISIVE, DECISIVE + 1, 2, 3, 4, *range(DECISIVE + 2, MOVES + 2)]))
def test_killed_while_a_result_replaces_another_neither_is_lost(number: int, lab: Lab, output: Path) -> None:
    words = [*lab.words(output), *EVERY]
    assert lab.server.run(*words).code == 0
    first = finished(output).result
    killed = lab.server.run(*words, "--force", faults=[["kill_at_move", number]])
    assert killed.code == (KILLED if number <= MOVES else 0), killed.err
    results = [read_result(path) for path in output.glob("tiny/*/result.json") if path.parent.suffix != ".part"]
    assert (first in results) == (number <= DECISIVE + 1)
    assert any(result != first for result in results) == (number > DECISIVE)
    again = lab.server.run(*words, *(["--force"] if number <= DECISIVE else []))
    assert again.code == 0, again.err
    assert ("resume     from step" in again.out) == (number <= DECISIVE)
    assert finished(output).digest == lab.uninterrupted().digest


def test_without_a_checkpoint_resume_starts_from_scratch(lab: Lab, output: Path) -> None:
    done = lab.server.run(*lab.words(output), "--resume")
    assert done.code == 0, done.err
    assert "no checkpoint found: starting from scratch" in done.out
    assert finished(output).digest == lab.uninterrupted().digest


def test_without_resume_it_starts_from_scratch_and_names_the_checkpoint(lab: Lab, output: Path) -> None:
    words = [*lab.words(output), "--checkpoint-every", "1"]
    assert lab.server.run(*words, faults=[["kill_at_step", 5]]).code == KILLED
    restarted = lab.server.run(*words, faults=[["kill_at_step", 3]])
    assert "starting from scratch; --resume would continue from step-00000004 of an earlier attempt" in restarted.out
    assert [path.name for path in steps(output)] == ["step-00000001", "step-00000002"]


def test_resuming_an_edited_recipe_is_refused_with_the_difference(lab: Lab, output: Path) -> None:
    words = [*lab.words(output), *EVERY]
    assert lab.server.run(*words, faults=[["kill_at_step", 5]]).code == KILLED
    recipe = lab.folder / "tiny.yaml"
    before = recipe.read_text()
    try:
        recipe.write_text(before.replace("2e-2", "3e-2"))
        refused = lab.server.run(*words)
        assert (refused.code, len(refused.err.splitlines())) == (2, 1)
        assert "training.learning_rate: 0.02 there, 0.03 here" in refused.err
        assert lab.server.run(*words, "--set", "seeds=1").code == 0  # a different recipe is a different run
    finally:
        recipe.write_text(before)
    assert lab.server.run(*words).code == 0


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [("rows.jsonl", "Main", "Mail", "the data: "), ("tiny/config.json", '"gelu"', '"relu"', "the base's files: ")],
)
def test_resuming_on_other_data_or_base_is_refused(
    file: str, old: str, new: str, says: str, lab: Lab, output: Path
) -> None:
    words = [*lab.words(output), *EVERY]
    assert lab.server.run(*words, faults=[["kill_at_step", 5]]).code == KILLED
    before = (lab.folder / file).read_text()
    try:
        (lab.folder / file).write_text(before.replace(old, new))
        refused = lab.server.run(*words)
    finally:
        (lab.folder / file).write_text(before)
    assert (refused.code, len(refused.err.splitlines())) == (2, 1)
    assert says in refused.err


def test_another_library_version_is_reported_and_recorded(lab: Lab, output: Path) -> None:
    words = [*lab.words(output), *EVERY]
    assert lab.server.run(*words, faults=[["other_version", "peft", "0.0.1"], ["kill_at_step", 5]]).code == KILLED
    done = lab.server.run(*words)
    assert done.code == 0, done.err
    assert "differs    peft: 0.0.1 then" in done.out
    (resume,) = finished(output).result.resumes
    assert any(text.startswith("peft: 0.0.1 then") for text in resume.differences)


def test_patience_is_counted_across_a_resume(lab: Lab, output: Path) -> None:
    recipe = ("training.steps=40", "training.evaluate_every=1", "training.patience=4", "training.learning_rate=1e-5")
    reference = lab.uninterrupted(*recipe)
    assert reference.result.stopped_early
    stopped = reference.result.cost.optimizer_steps
    words = [*lab.words(output, *recipe), *EVERY]
    for at in (stopped - 1, 1):  # before the last evaluation, then in the last step
        assert lab.server.run(*words, faults=[["kill_at_step", at]]).code == KILLED
    assert lab.server.run(*words).code == 0
    after = finished(output)
    assert (after.digest, after.result.curve) == (reference.digest, reference.result.curve)
    assert after.result.cost.optimizer_steps == stopped


@pytest.mark.parametrize("keep_last", [1, 3])
def test_as_many_checkpoints_are_kept_as_configured(keep_last: int, lab: Lab, output: Path) -> None:
    words = [*lab.words(output), *EVERY, "--keep-checkpoints", keep_last]
    assert lab.server.run(*map(str, words), faults=[["kill_at_step", 6]]).code == KILLED
    assert [path.name for path in steps(output)] == [f"step-{step:08d}" for step in range(6 - keep_last, 6)]
