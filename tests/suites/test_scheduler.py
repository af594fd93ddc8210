"""Benches: what has no result is run, once, and each run leaves a record however it ended."""

import gzip
import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

import peftlab.runs.run
from peftlab.errors import UserError
from peftlab.profiling.measure import measure
from peftlab.recipe import Recipe
from peftlab.reports import columns
from peftlab.reports.html import page
from peftlab.reports.markdown import markdown, read_analysis
from peftlab.results.run_result import RunResult
from peftlab.runs.run import run
from peftlab.sources.assets import cache_folder
from peftlab.suites import profile_scheduler as bench_ledgers_module
from peftlab.suites import scheduler as bench_module
from peftlab.suites import workers
from peftlab.suites.claims import Claims
from peftlab.suites.collect import collect
from peftlab.suites.plan import Plan, current_plan, make_plan
from peftlab.suites.profile_scheduler import ALONE, profile_suite
from peftlab.suites.profiles import ProfileRecord, ProfileStore
from peftlab.suites.scheduler import Options, adopt, bench
from peftlab.suites.store import Predictions, Record, Store, Stored
from peftlab.suites.suite import Row, Suite
from peftlab.suites.suite_file import load_suite

SUITE = """\
seeds: [1, 2]
model: sentence-transformers/all-MiniLM-L6-v2
task: token_classification
data:
  id: datamade/usaddress
  columns: {labels: ner_tags}
  train_examples: 12
  validation_examples: 6
  test_examples: 20
training: {steps: 2, batch_tokens: 128, precision: float32}
trials: {points: 2, extensions: 0}
reference: lora
quantizations: [none, nf4]
tasks: {addresses: {}}
methods:
  full: {method: full, learning_rate: 1e-3, quantizations: [nf4]}
  lora: {method: {kind: lora, rank: 2}, learning_rate: 1e-2}
  head: {method: head, learning_rate: 1e-2, quantizations: [none]}
"""


def write(folder: Path, text: str = SUITE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "suite.yaml").write_text(text)
    return folder


def results(folder: Path) -> dict[str, RunResult]:
    return {d: s.record.result for d, s in Store(folder).records().items() if s.record.result is not None}


@pytest.fixture(scope="module")
def benched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = write(tmp_path_factory.mktemp("suites") / "tiny")
    said: list[str] = []
    bench(folder, Options(jobs=2), said.append)
    return folder, said


def test_every_run_of_the_suite_ends_in_one_record(benched: tuple[Path, list[str]]) -> None:
    folder, said = benched
    records = Store(folder).records()
    states = sorted((stored.recipe.name, stored.record.state) for stored in records.values())
    assert states == [
        ("addresses-full-nf4", "unsupported"),
        *[("addresses-head-none", "done")] * 4,
        *[("addresses-lora-nf4", "done")] * 2,
        *[("addresses-lora-none", "done")] * 4,
    ]
    assert any(line.startswith("10/10  ") for line in said)
    (refused,) = [stored.record for stored in records.values() if stored.record.state == "unsupported"]
    assert "full fine-tuning changes the base's weights" in str(refused.reason)


def test_a_trial_is_not_scored_on_test_and_a_cell_is(benched: tuple[Path, list[str]]) -> None:
    for stored in Store(benched[0]).records().values():
        if stored.record.result is not None:
            assert ("test" in stored.record.result.metrics) == (stored.recipe.seeds.initialization != 0)


def test_a_second_bench_has_nothing_to_do(benched: tuple[Path, list[str]]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (benched[0] / "results").iterdir()}
    said: list[str] = []
    bench(benched[0], Options(), said.append)
    assert said == []
    assert {path: path.stat().st_mtime_ns for path in (benched[0] / "results").iterdir()} == before


def test_a_forked_run_is_the_run_that_a_person_would_start(benched: tuple[Path, list[str]], tmp_path: Path) -> None:
    stored = next(s for s in Store(benched[0]).records().values() if s.recipe.name == "addresses-lora-nf4")
    result = run(stored.recipe, tmp_path / "out")
    assert stored.record.result is not None
    assert result.metrics == stored.record.result.metrics
    assert result.curve == stored.record.result.curve


def test_what_is_kept_holds_no_word_and_no_gold_label(benched: tuple[Path, list[str]]) -> None:
    stored = next(s for s in Store(benched[0]).records().values() if "test" in getattr(s.record.result, "metrics", {}))
    rows = stored.recipe.data.load(("tokens", "labels")).rows
    kept = json.loads(gzip.decompress(stored.predictions_path.read_bytes()))
    assert set(kept) == {"version", "kept", "counts"}
    strings = {tag for part in kept["kept"].values() for tags in part["predicted"] for tag in tags}
    labels = {tag for part in rows.values() for row in part for tag in row.fields["labels"]}
    assert strings <= labels | {"O"}
    assert kept["kept"]["test"]["predicted"] != [list(row.fields["labels"]) for row in rows["test"]]
    assert stored.predictions_path.read_bytes()[4:8] == b"\0\0\0\0"  # no time of writing
    assert [len(sha256) for sha256 in stored.record.tensors.values()] == [64]
    assert stored.record.high_water_bytes


def test_the_counts_give_the_score(benched: tuple[Path, list[str]]) -> None:
    for stored in Store(benched[0]).records().values():
        if stored.record.result is None:
            continue
        for split, scores in stored.record.result.metrics.items():
            (counted,) = stored.predictions().counts[split]
            right, predicted, expected = (sum(column) for column in zip(*counted.rows, strict=True))
            assert expected > 0
            assert 2 * right / max(1, predicted + expected) == pytest.approx(scores["entity_f1"], abs=1e-12)


def test_runs_from_elsewhere_are_adopted_if_they_are_cells(benched: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny", SUITE.replace("points: 2", "points: 1"))
    row = Row("addresses", "head", "none")
    recipe = load_suite(folder).recipe(row, learning_rate=1e-2, seed=1, trial=False)
    run(recipe.model_copy(update={"name": "other"}), tmp_path / "runs" / "mine" / "x")
    shutil.copytree(tmp_path / "runs" / "mine" / "x", tmp_path / "runs" / "mine" / "y.part")  # of a run at work
    run(recipe.model_copy(update={"score_test": False}), tmp_path / "runs" / "not-a-cell")
    said: list[str] = []
    assert adopt(folder, tmp_path / "runs", said.append) == 1
    assert said[-1].startswith("1 adopted; 1 others below")
    (stored,) = Store(folder).records().values()
    assert stored.recipe.digest == recipe.digest
    assert stored.predictions().counts["test"][0].score == "entity_f1"
    assert adopt(folder, tmp_path / "runs", said.append) == 0
    failed = Record(state="failed", reason="no disk", recipe=recipe.model_dump(mode="json"))
    Store(folder).write(recipe, failed, None)
    assert adopt(folder, tmp_path / "runs", said.append) == 1
    (stored,) = Store(folder).records().values()
    assert stored.record.state == "done"
    with pytest.raises(UserError, match="no such folder"):
        adopt(folder, tmp_path / "nowhere")
    (path,) = (tmp_path / "runs" / "not-a-cell").glob("result.json")
    path.write_text(path.read_text().replace('"recipe": {', '"recipe": {"colour": 1,', 1))
    with pytest.raises(UserError, match=r"result\.json: recipe: colour: "):
        adopt(folder, tmp_path / "runs")


def ends(folder: Path, *, retry: bool = False) -> dict[str, tuple[str, str]]:
    """How each run ended and why, by method."""
    bench(folder, Options(retry=retry), lambda line: None)
    records = Store(folder).records().values()
    return {stored.recipe.method.kind: (stored.record.state, str(stored.record.reason)) for stored in records}


HEAD = "  head: {method: head, learning_rate: 1e-2, quantizations: [none]}\n"
FULL = "  full: {method: full, learning_rate: 1e-3, quantizations: [nf4]}\n"
ONE = (
    SUITE.replace("[1, 2]", "[1]").replace("points: 2", "points: 1").replace("[none, nf4]", "[none]").replace(FULL, "")
)


@pytest.mark.slow
def test_every_other_end_is_a_record_too(tmp_path: Path) -> None:
    text = ONE.replace("{steps: 2", "{steps: 30, clip: null").replace("rank: 2", "targets: [nowhere]")
    text += "  full: {method: full, learning_rate: 10.0}\n"
    found = ends(write(tmp_path / "tiny", text))
    assert found["full"][0] == "diverged"
    assert " is nan at step" in found["full"][1]
    assert str(cache_folder()) not in found["full"][1]  # records are committed: they name no place on a disk
    assert found["lora"][0] == "failed"
    assert "'nowhere' matches no linear layer" in found["lora"][1]
    assert found["head"] == ("done", "None")


def test_a_run_over_its_time_is_stopped_and_recorded_and_may_be_tried_again(tmp_path: Path) -> None:
    text = ONE.replace("steps: 2", "steps: 100000").replace(HEAD, "")
    folder = write(tmp_path / "tiny", f"{text}time_limit: 3\n")
    assert ends(folder) == {"lora": ("timed out", "not done after 3 s")}
    (path,) = (folder / "results").glob("*.json")
    before = path.stat().st_mtime_ns
    ends(folder)
    assert path.stat().st_mtime_ns == before
    assert ends(folder, retry=True) == {"lora": ("timed out", "not done after 3 s")}
    assert path.stat().st_mtime_ns > before


Patch = pytest.MonkeyPatch


def test_a_run_without_memory_is_recorded_as_such_and_the_next_is_clean(tmp_path: Path, monkeypatch: Patch) -> None:
    init_worker = workers.init_worker
    reach = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + 50 * 2**20

    def poor(parent: int, log: Path) -> None:
        init_worker(parent, log)
        if "lora" in log.name:
            resource.setrlimit(resource.RLIMIT_AS, (reach, reach))

    monkeypatch.setattr(workers, "init_worker", poor)
    found = ends(write(tmp_path / "tiny", ONE))
    assert found["lora"][0] == "out of memory"
    assert found["head"][0] == "done"


def test_what_a_dead_runner_left_of_a_run_goes_with_its_next_attempt(tmp_path: Path) -> None:
    for name in ("aaaa-host-1-dead", "aaaab-host-1-dead", "bbbb-host-2-dead"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.json.part").touch()
    place = workers.workplace(tmp_path, "aaaa", "host-3-alive")
    assert place == tmp_path / "aaaa-host-3-alive"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["aaaab-host-1-dead", "bbbb-host-2-dead"]


def test_a_killed_process_is_tried_again_and_after_three_times_recorded(tmp_path: Path, monkeypatch: Patch) -> None:
    init_worker = workers.init_worker

    def doomed(parent: int, log: Path) -> None:
        init_worker(parent, log)
        if "lora" in log.name:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(workers, "init_worker", doomed)
    said: list[str] = []
    bench(write(tmp_path / "tiny", ONE), Options(), said.append)
    assert sum("killed by signal 9; once more" in line for line in said) == 2
    states = {stored.recipe.method.kind: stored.record.state for stored in Store(tmp_path / "tiny").records().values()}
    assert states == {"lora": "out of memory", "head": "done"}


@pytest.mark.slow
def test_a_score_that_a_split_does_not_define_is_said_and_no_runner_dies_of_it(
    tmp_path: Path, benched: tuple[Path, list[str]], monkeypatch: Patch
) -> None:
    def undefined(folder: Path) -> tuple[Record, Predictions]:
        record, predictions = collect(folder)
        assert record.result is not None
        metrics = {split: {} if split == "test" else scores for split, scores in record.result.metrics.items()}
        return record.model_copy(update={"result": record.result.model_copy(update={"metrics": metrics})}), predictions

    monkeypatch.setattr(bench_module, "collect", undefined)
    folder, said = write(tmp_path / "tiny", ONE), list[str]()
    bench(folder, Options(), said.append)
    assert sum("test entity_f1 undefined" in line for line in said) == 2
    findings = read_analysis(folder)
    assert [columns.runs(line) for line in findings.lines] == ["0 of 1", "0 of 1"]
    assert "of 1 runs that are done entity_f1 is undefined" in markdown(findings)
    assert "test entity_f1 undefined" in page(findings)


def test_what_was_refused_under_another_placement_is_run(tmp_path: Path) -> None:
    adalora = ONE.replace("{kind: lora, rank: 2}", "{kind: adalora, initial_rank: 4, target_rank: 2}")
    folder = write(tmp_path / "tiny", adalora + "placement: {processes: 2, sharded: true}\n")
    assert ends(folder)["adalora"][0] == "unsupported"
    write(folder, adalora)
    assert ends(folder)["adalora"][0] != "unsupported"


def test_a_record_by_an_older_digest_is_replaced_not_doubled(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(peftlab.runs.run, "run", lambda recipe, folder: None)  # and leaves nothing: failed
    folder = write(tmp_path / "tiny", ONE)
    ends(folder)
    for path in list((folder / "results").glob("*.json")):
        path.rename(path.with_name(f"{path.name[:-17]}{'0' * 12}.json"))
    found = ends(folder, retry=True)
    assert found.keys() == {"lora", "head"}
    assert len(list((folder / "results").glob("*.json"))) == 2


def test_a_runner_that_waits_leaves_the_processor_to_the_runs(tmp_path: Path, monkeypatch: Patch) -> None:
    """As often as runs end it looks what is to be done, however long they take and whether it could take more."""
    plans: list[object] = []

    def counting(suite: Suite, records: dict[str, Stored]) -> Plan:
        plans.append(suite)
        return current_plan(suite, records)

    monkeypatch.setattr(bench_module, "current_plan", counting)
    monkeypatch.setattr(bench_module, "POLL", 0.01)
    monkeypatch.setattr(peftlab.runs.run, "run", lambda recipe, folder: time.sleep(1))  # and leaves nothing: failed
    for name, jobs in (("full", 1), ("idle", 3)):
        folder = write(tmp_path / name, ONE)
        plans.clear()
        bench(folder, Options(jobs=jobs), lambda line: None)
        assert len(plans) <= 2 + 2 * len(Store(folder).records())


def test_a_claim_is_one_runners_until_its_lease_ends(tmp_path: Path) -> None:
    first, second = Claims(tmp_path / "c.sqlite", lease=0.5), Claims(tmp_path / "c.sqlite", lease=0.5)
    assert first.take("run", lambda: False) == 1
    assert second.take("run", lambda: False) is None
    time.sleep(0.3)
    first.renew()
    time.sleep(0.3)
    assert second.take("run", lambda: False) is None
    time.sleep(0.6)
    assert second.take("run", lambda: True) is None  # it has ended meanwhile
    assert second.take("run", lambda: False) == 2
    written: list[str] = []
    assert not first.commit("run", lambda: written.append("first"))  # it was thought dead, and is too late
    assert second.commit("run", lambda: written.append("second"))
    assert written == ["second"]


def test_a_result_in_two_files_is_refused(benched: tuple[Path, list[str]], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(benched[0], tmp_path / "copy"))
    path = next((copy / "results").glob("*.json"))
    shutil.copy(path, path.with_name("zz.json"))
    with pytest.raises(UserError, match=r"zz.json: another result of the same run as .*; remove one"):
        Store(copy).records()


@pytest.mark.parametrize("damage", ["{}", "nothing", '{"version": 1, "state": "done"}'])
def test_a_damaged_record_is_one_line(tmp_path: Path, damage: str) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "x.json").write_text(damage)
    with pytest.raises(UserError, match=r"x.json: "):
        Store(tmp_path).records()


def test_a_record_without_a_result_reads_as_it_was_written(tmp_path: Path) -> None:
    recipe = make_plan(load_suite(write(tmp_path)), {}).recipes[0]
    record = Record(state="timed out", reason="r", recipe=recipe.model_dump(mode="json"), seconds=1.5)
    Store(tmp_path).write(recipe, record, None)
    assert Store(tmp_path).records()[recipe.digest].record == record


@pytest.mark.slow
def test_every_combination_gets_a_ledger_or_its_reason_one_at_a_time(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny", ONE.replace("rank: 2", "targets: [nowhere]") + FULL.replace("[nf4]", "[none]"))
    other = Claims(folder / ".bench" / "claims.sqlite", lease=600)
    assert other.take(ALONE, lambda: False) == 1  # another runner, which measures
    said: list[str] = []

    def say(line: str) -> None:
        if not said:
            assert not ProfileStore(folder).read()
            other.forget(ALONE)
        said.append(line)

    profile_suite(folder, Options(), say)
    assert said[0] == "3 ledgers left, and another runner measures; waiting for it"
    found = {measured.recipe.method.kind: measured for measured in ProfileStore(folder).read().values()}
    assert {kind: measured.record.state for kind, measured in found.items()} == {
        "lora": "failed", "head": "done", "full": "done"
    }  # fmt: skip
    assert "'nowhere' matches no linear layer" in str(found["lora"].record.reason)
    assert found["lora"].record.measured_on is not None
    head, full = found["head"].record.ledger, found["full"].record.ledger
    assert head is not None
    assert full is not None
    assert full.times is not None
    assert head.memory.optimizer < full.memory.optimizer
    memory = measure(found["head"].recipe, timed=False).memory  # as `peftlab profile` does it
    assert head.memory.model_copy(update={"process_peak": None}) == memory.model_copy(update={"process_peak": None})
    assert not Store(folder).records()  # nothing was run
    assert other.take(ALONE, lambda: False) is not None  # and given back
    other.close()
    again: list[str] = []
    profile_suite(folder, Options(), again.append)
    assert again == []


def test_a_measurement_that_is_killed_is_tried_again_and_after_three_times_recorded(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(workers, "init_worker", lambda parent, log: os.kill(os.getpid(), signal.SIGKILL))
    folder = write(tmp_path / "tiny", ONE.replace(HEAD, ""))
    said: list[str] = []
    profile_suite(folder, Options(), said.append)
    assert sum("killed by signal 9; once more" in line for line in said) == 2
    (measured,) = ProfileStore(folder).read().values()
    assert (measured.record.state, measured.record.ledger) == ("out of memory", None)
    before = measured.path.stat().st_mtime_ns
    profile_suite(folder, Options(), said.append)
    assert measured.path.stat().st_mtime_ns == before
    profile_suite(folder, Options(retry=True), said.append)
    assert measured.path.stat().st_mtime_ns > before


def test_a_ledger_whose_claim_was_taken_over_is_thrown_away(tmp_path: Path, monkeypatch: Patch) -> None:
    """A runner that was thought dead comes back when another has measured."""
    folder = write(tmp_path / "tiny", ONE.replace(HEAD, ""))

    def overtaken(recipe: Recipe, into: Path, threads: int) -> None:
        record = ProfileRecord(state="failed", reason="by the other", recipe=recipe.model_dump(mode="json"))
        with closing(sqlite3.connect(folder / ".bench" / "claims.sqlite")) as database, database:
            database.execute("UPDATE claims SET owner = 'other', until = 1e12")
        ProfileStore(folder).write(recipe, record)
        workers.leave(into, record.model_copy(update={"reason": "too late"}))

    monkeypatch.setattr(bench_ledgers_module, "_leave_ledger", overtaken)
    said: list[str] = []
    profile_suite(folder, Options(), said.append)
    assert "taken over by another runner, thrown away" in said[-1]
    (measured,) = ProfileStore(folder).read().values()
    assert measured.record.reason == "by the other"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("results", "results: cannot be written: .*results is no folder"),
        (".bench", r"\.bench: cannot be written: File exists"),
        (".bench/claims.sqlite", r"claims\.sqlite: file is not a database; it may be deleted when no runner is at"),
    ],
)
def test_a_place_that_cannot_be_written_is_a_line_before_anything_runs(name: str, says: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny", ONE)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("neither a folder nor a database")
    with pytest.raises(UserError, match=says):
        bench(folder, Options())


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="drops what root may do")
def test_a_folder_that_another_owns_is_a_line_before_anything_runs(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny", ONE)
    (folder / "results").mkdir(mode=0o555)
    code = (
        "import pathlib, sys; from peftlab.suites.scheduler import Options, bench;"
        f"bench(pathlib.Path({str(folder)!r}), Options())"
    )
    mortal = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-all"]
    done = subprocess.run([*mortal, sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stderr.splitlines()[-1].endswith("results: cannot be written: permission denied")
    assert not (folder / ".bench").exists()
