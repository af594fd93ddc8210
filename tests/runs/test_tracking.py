"""Trackers hear of a run what a person sees of it: read back from TensorBoard's own files."""

import errno
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from peftlab.errors import UserError
from peftlab.recipe import load_recipe
from peftlab.results.result_file import is_finished, result_folder, tracking_folder
from peftlab.results.run_result import RunResult
from peftlab.runs import tracking
from peftlab.runs.run import RunOptions, run


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, EventAccumulator]:
    from tests.conftest import RECIPE

    folder = tmp_path_factory.mktemp("tracked")
    (folder / "mine.yaml").write_text(RECIPE)
    recipe = load_recipe(folder / "mine.yaml")
    result = run(recipe, result_folder(folder, recipe.name, recipe.digest), RunOptions(trackers=["tensorboard"]))
    events = EventAccumulator(str(folder / recipe.name / f"{recipe.digest}.tracking" / recipe.name))
    events.Reload()
    return result, events


def test_every_step_and_every_evaluation_is_reported(tracked: tuple[RunResult, EventAccumulator]) -> None:
    result, events = tracked
    losses = events.Scalars("train/loss")
    assert [event.step for event in losses] == [1, 2, 3, 4, 5, 6]
    halves = [sum(event.value for event in half) / 3 for half in (losses[:3], losses[3:])]
    assert halves == pytest.approx(result.curve.losses, rel=1e-5)
    scores = events.Scalars(f"validation/{result.selection}")
    assert [event.step for event in scores] == result.curve.steps
    assert [event.value for event in scores] == pytest.approx(result.curve.scores, rel=1e-5)


def test_the_test_score_is_reported_at_the_end(tracked: tuple[RunResult, EventAccumulator]) -> None:
    result, events = tracked
    (score,) = events.Scalars(f"test/{result.selection}")
    assert (score.step, score.value) == (6, pytest.approx(result.metrics["test"][result.selection], rel=1e-5))


@pytest.mark.slow
def test_a_run_without_a_tracker_writes_no_tracking_files(tmp_path: Path, recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    run(recipe, result_folder(tmp_path, recipe.name, recipe.digest))
    assert not list(tmp_path.rglob("*.tracking"))


@pytest.mark.parametrize(
    ("tracker", "says"),
    [("tensorbord", "did you mean 'tensorboard'"), ("dvclive", "not installed; pip install dvclive")],
)
def test_a_missing_tracker_is_an_error_before_anything_loads(tracker: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        tracking.settings([tracker], tmp_path)


def test_a_tracker_that_cannot_start_is_one_error_line(tmp_path: Path, recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    folder = result_folder(tmp_path, recipe.name, recipe.digest)
    folder.parent.mkdir()
    tracking_folder(folder).touch()
    with pytest.raises(UserError, match="--track: tensorboard could not start: NotADirectoryError"):
        run(recipe, folder, RunOptions(trackers=["tensorboard"]))


def test_a_tracker_that_fails_later_does_not_end_the_run(
    tmp_path: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*given: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("accelerate.tracking.TensorBoardTracker.log", full)
    monkeypatch.setattr("accelerate.tracking.TensorBoardTracker.finish", full)
    recipe = load_recipe(recipe_file)
    folder = result_folder(tmp_path, recipe.name, recipe.digest)
    run(recipe, folder, RunOptions(trackers=["tensorboard"]))
    assert is_finished(folder)
    assert capsys.readouterr().out.count("stopped: OSError: [Errno 28] No space left on device") == 1
