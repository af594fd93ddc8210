"""Reproducing a result: bit-equal, within its interval, or not reproduced."""

import json
import shutil
from pathlib import Path

import pytest

from peftlab.errors import UserError
from peftlab.suites.reproduce import compare, reproduce
from peftlab.suites.store import ScoreStatistics, read_record


def test_a_run_made_again_is_the_same_to_the_bit_tensors_too(stored_run: Path) -> None:
    (path,) = (stored_run / "results").glob("*.json")
    found = reproduce(path)
    assert found.same, found.differences
    assert found.verdict.startswith("bit-equal: ")


@pytest.mark.parametrize(("shift", "says"), [(0.01, "within the interval"), (0.9, "NOT reproduced: outside")])
def test_another_score_is_within_the_interval_or_not(stored_run: Path, shift: float, says: str) -> None:
    (path,) = (stored_run / "results").glob("*.json")
    stored = read_record(path)
    again = read_record(path).record
    assert again.result is not None
    again.result.metrics["test"]["entity_f1"] += shift
    found = compare(stored, stored.predictions(), again, stored.predictions())
    assert not found.same
    assert found.verdict.startswith(says)


def test_other_tensors_are_not_the_same_to_the_bit(stored_run: Path) -> None:
    (path,) = (stored_run / "results").glob("*.json")
    stored = read_record(path)
    again = stored.record.model_copy(update={"tensors": dict.fromkeys(stored.record.tensors, "0" * 64)})
    found = compare(stored, stored.predictions(), again, stored.predictions())
    assert not found.same
    assert found.within
    assert [line for line in found.differences if line.startswith("tensors: ")]


def test_what_is_counted_since_then_is_no_difference_and_other_predictions_are_one(stored_run: Path) -> None:
    (path,) = (stored_run / "results").glob("*.json")
    stored = read_record(path)
    again = stored.predictions()
    more = ScoreStatistics(score="other", aggregate="mean", rows=[[1.0]])
    newer = again.model_copy(update={"statistics": {split: [*part, more] for split, part in again.statistics.items()}})
    assert compare(stored, again, stored.record, newer).same
    assert not compare(stored, newer, stored.record, again).same  # and what was counted then must be there now
    tags = again.columns["test"]["predicted"]
    other = again.model_copy(update={"columns": {**again.columns, "test": {"predicted": [*tags[:-1], ["O"]]}}})
    assert not compare(stored, again, stored.record, other).same


def test_what_has_no_result_cannot_be_reproduced(stored_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(stored_run, tmp_path / "tiny"))
    (path,) = (copy / "results").glob("*.json")
    values = json.loads(path.read_text())
    path.write_text(json.dumps({"state": "timed out", "reason": "r", "recipe": values["result"]["recipe"]}))
    with pytest.raises(UserError, match="timed out; there is no result to reproduce"):
        reproduce(path)


def test_a_score_that_its_split_does_not_define_cannot_be_reproduced(stored_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(stored_run, tmp_path / "tiny"))
    (path,) = (copy / "results").glob("*.json")
    values = json.loads(path.read_text())
    del values["result"]["metrics"]["test"]["entity_f1"]
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="entity_f1 is undefined on its test split: nothing to compare"):
        reproduce(path)
