"""Reproducing a result: bit-equal, within its interval, or not reproduced."""

import json
import shutil
from pathlib import Path

import pytest

from peftlab.errors import UserError
from peftlab.suites.reproduce import compare, reproduce
from peftlab.suites.store import ScoreStatistics, read_record


def test_a_repeated_run_is_bit_equal_tensors_included(stored_run: Path) -> None:
    (path,) = (stored_run / "results").glob("*.json")
    reproduction = reproduce(path)
    assert reproduction.same, reproduction.differences
    assert reproduction.verdict.startswith("bit-equal: ")


@pytest.mark.parametrize(("shift", "verdict"), [(0.01, "within the interval"), (0.9, "NOT reproduced: outside")])
def test_another_score_is_within_the_interval_or_not(stored_run: Path, shift: float, verdict: str) -> None:
    (path,) = (stored_run / "results").glob("*.json")
    stored = read_record(path)
    again = read_record(path).record
    assert again.result is not None
    again.result.metrics["test"]["entity_f1"] += shift
    reproduction = compare(stored, stored.predictions(), again, stored.predictions())
    assert not reproduction.same
    assert reproduction.verdict.startswith(verdict)


def test_different_tensors_are_not_bit_equal(stored_run: Path) -> None:
    (path,) = (stored_run / "results").glob("*.json")
    stored = read_record(path)
    again = stored.record.model_copy(update={"tensors": dict.fromkeys(stored.record.tensors, "0" * 64)})
    reproduction = compare(stored, stored.predictions(), again, stored.predictions())
    assert not reproduction.same
    assert reproduction.within
    assert [line for line in reproduction.differences if line.startswith("tensors: ")]


def test_further_statistics_are_no_difference_and_other_predictions_are_one(stored_run: Path) -> None:
    (path,) = (stored_run / "results").glob("*.json")
    stored = read_record(path)
    again = stored.predictions()
    more = ScoreStatistics(score="other", aggregate="mean", rows=[[1.0]])
    newer = again.model_copy(update={"statistics": {split: [*part, more] for split, part in again.statistics.items()}})
    assert compare(stored, again, stored.record, newer).same
    assert not compare(stored, newer, stored.record, again).same  # all stored statistics must be in the new run
    tags = again.columns["test"]["predicted"]
    other = again.model_copy(update={"columns": {**again.columns, "test": {"predicted": [*tags[:-1], ["O"]]}}})
    assert not compare(stored, again, stored.record, other).same


def test_a_record_without_a_result_cannot_be_reproduced(stored_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(stored_run, tmp_path / "tiny"))
    (path,) = (copy / "results").glob("*.json")
    values = json.loads(path.read_text())
    path.write_text(json.dumps({"state": "timed out", "reason": "r", "recipe": values["result"]["recipe"]}))
    with pytest.raises(UserError, match="timed out; there is no result to reproduce"):
        reproduce(path)


def test_an_undefined_score_cannot_be_reproduced(stored_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(stored_run, tmp_path / "tiny"))
    (path,) = (copy / "results").glob("*.json")
    values = json.loads(path.read_text())
    del values["result"]["metrics"]["test"]["entity_f1"]
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="entity_f1 is undefined on its test split: nothing to compare"):
        reproduce(path)
