"""Runs of a suite: each run leaves one record however it ended, equal to the run that a person would start."""

import gzip
import json
import os
import re
import resource
import signal
from pathlib import Path

import pytest

from peftlab.reports import columns, html, markdown
from peftlab.reports.analysis import read_analysis
from peftlab.reports.sections import build_document
from peftlab.runs.run import run
from peftlab.sources.assets import cache_folder
from peftlab.suites import run_jobs, workers
from peftlab.suites.collect import collect
from peftlab.suites.run_jobs import bench
from peftlab.suites.scheduler import Options
from peftlab.suites.store import Predictions, Record, Store
from tests.suites.tiny import FULL, HEAD, LORA, write_suite

Finished = tuple[Path, list[str]]
Patch = pytest.MonkeyPatch


def outcomes(folder: Path, *, retry: bool = False) -> dict[str, tuple[str, str]]:
    """State and reason of each run of a suite after `bench`, by method."""
    bench(folder, Options(retry=retry), lambda line: None)
    records = Store(folder).records().values()
    return {stored.recipe.method.kind: (stored.record.state, str(stored.record.reason)) for stored in records}


def test_every_run_of_the_suite_ends_in_one_record(finished_suite: Finished) -> None:
    folder, messages = finished_suite
    records = Store(folder).records()
    states = sorted((stored.recipe.name, stored.record.state) for stored in records.values())
    assert states == [
        ("addresses-full-nf4", "unsupported"),
        *[("addresses-head-none", "done")] * 4,
        *[("addresses-lora-nf4", "done")] * 2,
        *[("addresses-lora-none", "done")] * 4,
    ]
    assert any(line.startswith("10/10  ") for line in messages)
    (refused,) = [stored.record for stored in records.values() if stored.record.state == "unsupported"]
    assert "full fine-tuning changes the base model's weights" in str(refused.reason)


def test_only_cells_are_scored_on_test_and_trials_are_not(finished_suite: Finished) -> None:
    for stored in Store(finished_suite[0]).records().values():
        if stored.record.result is not None:
            assert ("test" in stored.record.result.metrics) == (stored.recipe.seeds.initialization != 0)


def test_a_second_bench_changes_nothing(finished_suite: Finished) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished_suite[0] / "results").iterdir()}
    messages: list[str] = []
    bench(finished_suite[0], Options(), messages.append)
    assert messages == []
    assert {path: path.stat().st_mtime_ns for path in (finished_suite[0] / "results").iterdir()} == before


def test_a_forked_run_equals_the_run_that_a_person_would_start(finished_suite: Finished, tmp_path: Path) -> None:
    records = Store(finished_suite[0]).records().values()
    stored = next(stored for stored in records if stored.recipe.name == "addresses-lora-nf4")
    result = run(stored.recipe, tmp_path / "out")
    assert stored.record.result is not None
    assert result.metrics == stored.record.result.metrics
    assert result.curve == stored.record.result.curve


def test_stored_predictions_hold_no_word_and_no_expected_label(finished_suite: Finished) -> None:
    records = Store(finished_suite[0]).records().values()
    stored = next(stored for stored in records if "test" in getattr(stored.record.result, "metrics", {}))
    rows = stored.recipe.data.load(("tokens", "labels")).rows
    values = json.loads(gzip.decompress(stored.predictions_path.read_bytes()))
    assert set(values) == {"version", "columns", "statistics"}
    strings = {tag for split in values["columns"].values() for tags in split["predicted"] for tag in tags}
    labels = {tag for split in rows.values() for row in split for tag in row.fields["labels"]}
    assert strings <= labels | {"O"}
    assert values["columns"]["test"]["predicted"] != [list(row.fields["labels"]) for row in rows["test"]]
    assert stored.predictions_path.read_bytes()[4:8] == b"\0\0\0\0"  # gzip's time of writing
    assert [len(sha256) for sha256 in stored.record.tensors.values()] == [64]
    assert stored.record.peak_rss_bytes


def test_the_counts_give_the_score(finished_suite: Finished) -> None:
    for stored in Store(finished_suite[0]).records().values():
        if stored.record.result is None:
            continue
        for split, scores in stored.record.result.metrics.items():
            (statistics,) = stored.predictions().statistics[split]
            correct, predicted, expected = (sum(column) for column in zip(*statistics.rows, strict=True))
            assert expected > 0
            assert 2 * correct / max(1, predicted + expected) == pytest.approx(scores["entity_f1"], abs=1e-12)


@pytest.mark.slow
def test_runs_that_diverge_or_fail_are_recorded_with_the_reason(tmp_path: Path) -> None:
    lora = {**LORA, "method": {"kind": "lora", "targets": ["nowhere"]}}
    methods = {"lora": lora, "head": HEAD, "full": {"method": "full", "learning_rate": 10.0}}
    ends = outcomes(
        write_suite(tmp_path / "tiny", methods=methods, training={"steps": 30, "clip": None, "weight_decay": 10})
    )
    assert ends["full"][0] == "diverged"
    assert re.search(r" is (nan|inf) at step", ends["full"][1])
    assert str(cache_folder()) not in ends["full"][1]  # records are committed: they name no path of a machine
    assert ends["lora"][0] == "failed"
    assert "'nowhere' matches no linear layer" in ends["lora"][1]
    assert ends["head"] == ("done", "None")


@pytest.mark.slow
def test_a_run_over_its_time_limit_is_stopped_and_recorded_and_may_be_retried(tmp_path: Path) -> None:
    folder = write_suite(tmp_path / "tiny", methods={"lora": LORA}, training={"steps": 100000}, time_limit=3)
    assert outcomes(folder) == {"lora": ("timed out", "not done after 3 s")}
    (path,) = (folder / "results").glob("*.json")
    before = path.stat().st_mtime_ns
    outcomes(folder)
    assert path.stat().st_mtime_ns == before
    assert outcomes(folder, retry=True) == {"lora": ("timed out", "not done after 3 s")}
    assert path.stat().st_mtime_ns > before


def test_a_run_out_of_memory_is_recorded_as_such_and_the_next_one_succeeds(tmp_path: Path, monkeypatch: Patch) -> None:
    init_worker = workers.init_worker
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + 50 * 2**20

    def limited(parent: int, log: Path) -> None:
        init_worker(parent, log)
        if "lora" in log.name:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    monkeypatch.setattr(workers, "init_worker", limited)
    ends = outcomes(write_suite(tmp_path / "tiny"))
    assert ends["lora"][0] == "out of memory"
    assert ends["head"][0] == "done"


def test_a_killed_process_is_retried_and_recorded_after_three_attempts(tmp_path: Path, monkeypatch: Patch) -> None:
    init_worker = workers.init_worker

    def killed(parent: int, log: Path) -> None:
        init_worker(parent, log)
        if "lora" in log.name:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(workers, "init_worker", killed)
    messages: list[str] = []
    bench(write_suite(tmp_path / "tiny"), Options(), messages.append)
    assert sum("killed by signal 9; retrying" in line for line in messages) == 2
    states = {stored.recipe.method.kind: stored.record.state for stored in Store(tmp_path / "tiny").records().values()}
    assert states == {"lora": "out of memory", "head": "done"}


@pytest.mark.slow
def test_an_undefined_score_is_reported_and_stops_no_runner(
    tmp_path: Path, finished_suite: Finished, monkeypatch: Patch
) -> None:
    def undefined(folder: Path) -> tuple[Record, Predictions]:
        record, predictions = collect(folder)
        assert record.result is not None
        metrics = {split: {} if split == "test" else scores for split, scores in record.result.metrics.items()}
        return record.model_copy(update={"result": record.result.model_copy(update={"metrics": metrics})}), predictions

    monkeypatch.setattr(run_jobs, "collect", undefined)
    folder, messages = write_suite(tmp_path / "tiny"), list[str]()
    bench(folder, Options(), messages.append)
    assert sum("test entity_f1 undefined" in line for line in messages) == 2
    analysis = read_analysis(folder)
    assert [columns.finished_runs(row) for row in analysis.rows] == ["0 of 1", "0 of 1"]
    document = build_document(analysis)
    assert "entity_f1 is undefined for 1 finished runs" in markdown.render(document, root="..")
    assert "test entity_f1 undefined" in html.render(document, root="..")


def test_a_row_refused_under_another_placement_is_run(tmp_path: Path) -> None:
    methods = {"adalora": {"method": {"kind": "adalora", "initial_rank": 4, "target_rank": 2}, "learning_rate": 1e-2}}
    sharded = {"processes": 2, "sharded": True}
    folder = write_suite(tmp_path / "tiny", methods=methods, reference="adalora", placement=sharded)
    assert outcomes(folder)["adalora"][0] == "unsupported"
    write_suite(folder, methods=methods, reference="adalora")
    assert outcomes(folder)["adalora"][0] != "unsupported"


def test_full_fine_tuning_over_nf4_is_recorded_without_a_process(tmp_path: Path) -> None:
    folder = write_suite(tmp_path / "tiny", methods={"full": FULL}, reference="full", quantizations=["nf4"])
    assert outcomes(folder)["full"][0] == "unsupported"
    assert not (folder / ".bench" / "logs").exists()
