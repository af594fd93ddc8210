"""Verify: a stored number that its predictions do not give is wrong; one that only record or code has is unknown."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from peftlab.cli.verify import verify as verify_command
from peftlab.errors import UserError
from peftlab.suites import verify as verify_module
from peftlab.suites.store import Store, packed
from peftlab.suites.verify import Verdict, verify
from peftlab.tasks.token_classification import TokenClassification


def wrong(folder: Path) -> list[str]:
    (verdict,) = verify(folder)
    return verdict.wrong


def altered(folder: Path, target: Path, change: dict[str, Any]) -> Path:
    """A copy whose result message something else."""
    copy = Path(shutil.copytree(folder, target / "tiny"))
    (path,) = (copy / "results").glob("*.json")
    values = json.loads(path.read_text())
    for split, scores in change.get("metrics", {}).items():
        values["result"]["metrics"][split] |= scores
    values["result"] |= {key: value for key, value in change.items() if key != "metrics"}
    path.write_text(json.dumps(values))
    return copy


def test_an_unaltered_result_agrees_with_its_predictions(stored_run: Path) -> None:
    assert wrong(stored_run) == []


def test_a_missing_suite_inside_a_suite_is_an_error(stored_run: Path) -> None:
    with pytest.raises(UserError, match="mine: no such suite"):
        wrong(stored_run / "mine")


def test_an_altered_score_is_wrong(stored_run: Path, tmp_path: Path) -> None:
    copy = altered(stored_run, tmp_path, {"metrics": {"test": {"token_accuracy": 0.999}}})
    (line,) = wrong(copy)
    assert line.startswith("test token_accuracy: recorded 0.999, its predictions give 0.")


def test_an_altered_prediction_is_wrong(stored_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(stored_run, tmp_path / "tiny"))
    (stored,) = Store(copy).records().values()
    predictions = stored.predictions()
    tags = predictions.columns["test"]["predicted"]
    tags[0] = ["B-AddressNumber" if tag != "B-AddressNumber" else "O" for tag in tags[0]]
    stored.predictions_path.write_bytes(packed(predictions))
    assert [line for line in wrong(copy) if line.startswith("test token_accuracy: recorded")]


def test_altered_statistics_are_wrong(stored_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(stored_run, tmp_path / "tiny"))
    (stored,) = Store(copy).records().values()
    predictions = stored.predictions()
    predictions.statistics["test"][0].rows[0][0] += 1
    stored.predictions_path.write_bytes(packed(predictions))
    assert wrong(copy) == ["test: its statistics differ from those of its predictions"]


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (["columns", "test"], {}, "test: no predicted among its predictions"),
        (["columns", "test", "predicted", 0], 5, "test: its predictions cannot be scored: ValueError: "),
        (["columns", "test", "predicted", 0], ["O"], "test: its predictions cannot be scored: ValueError: "),
        (["columns", "test", "predicted", 0, 0], "Zebra", "test: its predictions cannot be scored: KeyError: 'Z'"),
        (["statistics"], {}, "statistics of nothing, but scores of validation, test"),
        (["statistics", "test", 0, "aggregate"], "other", "'other' is none of mean, f1, "),
        (["statistics", "test", 0, "rows", 0], [1.0], "rows of entity_f1 differ in length"),
    ],
)
def test_invalid_predictions_are_one_line(
    stored_run: Path, tmp_path: Path, where: list[Any], value: object, message: str
) -> None:
    copy = Path(shutil.copytree(stored_run, tmp_path / "tiny"))
    (path,) = (copy / "results").glob("*.gz")
    values = inner = json.loads(gzip.decompress(path.read_bytes()))
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    path.write_bytes(gzip.compress(json.dumps(values).encode()))
    (line,) = wrong(copy)
    assert message in line


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"state": "done"', '"state": "failed"', "failed, with a result"),
        (
            '"validation": {\n    "entity_f1"',
            '"dev": {\n    "entity_f1"',
            "scores of dev, test; expected validation, test",
        ),
    ],
)
def test_an_inconsistent_record_is_one_line(stored_run: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    copy = Path(shutil.copytree(stored_run, tmp_path / "tiny"))
    (path,) = (copy / "results").glob("*.json")
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=rf"{path.name}: {message}"):
        Store(copy).records()


def test_different_data_and_missing_predictions_are_reported(stored_run: Path, tmp_path: Path) -> None:
    copy = altered(stored_run, tmp_path, {"data_fingerprint": "0" * 64})
    assert wrong(copy)[0].startswith("its data were different: fingerprint 000000000000, now ")
    (stored,) = Store(copy).records().values()
    stored.predictions_path.unlink()
    assert "cannot be read" in wrong(copy)[0]


def test_a_score_that_the_record_lacks_is_unknown_not_wrong(stored_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(stored_run, tmp_path / "tiny"))
    (path,) = (copy / "results").glob("*.json")
    values = json.loads(path.read_text())
    del values["result"]["metrics"]["test"]["entity_recall"]
    path.write_text(json.dumps(values))
    (verdict,) = verify(copy)
    assert (verdict.wrong, verdict.not_recorded, verdict.not_computed) == ([], ["test entity_recall"], [])


def test_a_score_that_the_code_does_not_compute_is_unknown_and_named(stored_run: Path, tmp_path: Path) -> None:
    copy = altered(stored_run, tmp_path, {"metrics": {"test": {"retired_score": 0.5}}})
    (verdict,) = verify(copy)
    assert (verdict.wrong, verdict.not_recorded, verdict.not_computed) == ([], [], ["test retired_score"])


def test_a_metric_that_needs_columns_which_were_not_stored_is_unknown(
    stored_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TokenClassification, "metrics", ("entity_f1", "perplexity"))
    (verdict,) = verify(stored_run)
    assert verdict.wrong == []
    assert sorted(verdict.not_recorded) == ["test perplexity", "validation perplexity"]


def test_a_score_that_its_predictions_leave_undefined_is_wrong(stored_run: Path, tmp_path: Path) -> None:
    copy = altered(stored_run, tmp_path, {"metrics": {"test": {"entity_f1/Nowhere": 0.5}}})
    assert wrong(copy) == ["test entity_f1/Nowhere: recorded 0.5, its predictions give None"]


def test_the_command_counts_what_is_unknown_and_exits_with_1_only_for_what_is_wrong(
    stored_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = altered(stored_run, tmp_path, {"metrics": {"test": {"retired_score": 0.5}}})
    with pytest.raises(SystemExit) as end:
        verify_command(copy)
    assert end.value.code == 0
    assert capsys.readouterr().out.splitlines() == [
        "unknown: 1 stored scores that are no longer computed: retired_score",
        "1 of 1 results agree with their stored predictions",
    ]


def test_several_processes_find_what_one_finds(
    finished_suite: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(finished_suite[0], tmp_path / "tiny"))
    path = sorted((copy / "results").glob("*.json"))[-1]
    values = json.loads(path.read_text())
    values["result"]["metrics"]["validation"]["token_accuracy"] = 0.999
    path.write_text(json.dumps(values))

    def verdicts(processes: int) -> list[tuple[str, Verdict]]:
        monkeypatch.setattr(verify_module, "_cpus", lambda: processes)
        return [(verdict.stored.path.name, verdict) for verdict in verify(copy)]

    monkeypatch.setattr(verify_module, "RESULTS_PER_PROCESS", 1)
    one, two = verdicts(1), verdicts(2)
    assert one == two
    assert len(one) == 10
    assert [name for name, verdict in one if verdict.wrong] == [path.name]
