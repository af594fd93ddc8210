"""Suites whose runs are spread over several processes: the same results, and one that fails takes the others along."""

import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate import Accelerator

import peftlab.runs.run
from peftlab.errors import OutOfMemoryError, ProcessLostError, UserError
from peftlab.reports.analysis import read_analysis
from peftlab.reports.setup import setup
from peftlab.suites import store, workers
from peftlab.suites.placement import Placement
from peftlab.suites.profile_jobs import profile_suite
from peftlab.suites.reproduce import reproduce
from peftlab.suites.run_jobs import bench
from peftlab.suites.scheduler import Options
from peftlab.suites.store import Store
from peftlab.suites.suite_file import load_suite
from tests.sampling import slow_after

SUITE = """\
seeds: [1]
model: sentence-transformers/all-MiniLM-L6-v2
task: token_classification
data:
  id: datamade/usaddress
  columns: {labels: ner_tags}
  train_examples: 12
  validation_examples: 6
  test_examples: 21
training: {steps: 2, batch_tokens: 128, precision: float32}
trials: {points: 1}
reference: lora
quantizations: [none, int8]
tasks: {addresses: {}}
methods:
  lora: {method: {kind: lora, rank: 2}, learning_rate: 1e-2}
"""


def written(folder: Path, placement: str) -> Path:
    folder.mkdir()
    (folder / "suite.yaml").write_text(SUITE + f"placement: {placement}\n")
    return folder


@pytest.mark.slow
def test_two_processes_give_what_one_gives_and_the_result_says_how(tmp_path: Path) -> None:
    assert Accelerator(cpu=True).num_processes == 1  # a place that the forked processes must not take for theirs
    folders = [
        written(tmp_path / name, placement)
        for name, placement in (
            ("one", "{}"),
            ("two", "{processes: 2}"),
            ("shares", "{processes: 2, sharded: true}"),
        )
    ]
    for folder in folders:
        bench(folder, Options(), lambda line: None)
    one, two, shares = (Store(folder).records() for folder in folders)
    assert one.keys() == two.keys() == shares.keys()
    for digest, stored in one.items():
        alone = stored.record.result
        assert alone is not None
        for other, sharded in ((two[digest], False), (shares[digest], True)):
            if sharded and stored.recipe.quantization.kind == "int8":
                assert other.record.state == "unsupported"
                continue
            spread = other.record.result
            assert spread is not None
            assert spread.metrics == alone.metrics
            assert other.predictions().columns == stored.predictions().columns
            assert spread.curve.losses == pytest.approx(alone.curve.losses, abs=1e-5)
            assert (spread.environment.processes, spread.environment.sharded) == (2, sharded)
    assert "Each run uses" not in setup(read_analysis(folders[0]))[0]
    found = read_analysis(folders[2])
    assert "Each run uses 2 processes, each with a shard of the model (FSDP2)." in setup(found)[0]
    assert "1 thread, 2 processes with a shard of the model each" in found.environments["addresses"]
    again = reproduce(next(iter(two.values())).path)
    assert again.same
    assert again.differences == []


def ended(work: Callable[[], object], folder: Path, limit: float = 30.0) -> workers.Ended:
    child = workers.start(folder / "here", folder / "log", work)
    while (end := child.ended(limit)) is None:
        time.sleep(0.02)
    return end


def _one_of_two(folder: Path, end: str) -> None:
    """The first process waits for ever; the second one ends."""
    (folder / os.environ["RANK"]).write_text(str(os.getpid()))
    if os.environ["RANK"] == "0":
        time.sleep(30)
    while not (folder / "0").exists():
        time.sleep(0.01)
    if end == "raises":
        raise ValueError("no")
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("end", "status"), [("raises", 1 << 8), ("killed", signal.SIGKILL)])
def test_where_one_process_ends_badly_all_end_like_it(end: str, status: int, tmp_path: Path) -> None:
    found = ended(
        functools.partial(Placement(processes=2).run, functools.partial(_one_of_two, tmp_path, end)), tmp_path
    )
    assert (found.status, found.late) == (status, False)
    assert _gone(tmp_path)


def test_processes_die_with_the_one_that_started_them(tmp_path: Path) -> None:
    work = functools.partial(Placement(processes=2).run, functools.partial(_both_wait, tmp_path))
    child = workers.start(tmp_path / "here", tmp_path / "log", work)
    while len(list(tmp_path.glob("[01]"))) < 2:
        time.sleep(0.02)
    child.stop()
    assert _gone(tmp_path)


def _both_wait(folder: Path) -> None:
    staged = folder / f"{os.environ['RANK']}.part"
    staged.write_text(str(os.getpid()))
    staged.rename(folder / os.environ["RANK"])
    time.sleep(30)


def _gone(folder: Path) -> bool:
    """Whether the processes that left their numbers here end within a moment."""
    pids = [int(path.read_text()) for path in folder.glob("[01]")]
    assert len(pids) == 2
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.05)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return False


WAIT = 30.0  # seconds


@pytest.mark.parametrize(
    ("end", "state", "reason"),
    slow_after(
        1,
        [
            ("raises", "out of memory", "out of memory at step 3"),
            ("killed", "out of memory", "killed 3 times from outside, as a system short of memory does"),
            ("lost", "failed", "its process ended with exit code 1 and left nothing"),  # the first one waits in vain
        ],
    ),
)
def test_the_record_has_the_cause_not_what_it_did_to_the_others(
    end: str, state: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(recipe: object, folder: Path) -> None:
        if (os.environ["RANK"] == "0") == (end != "lost"):
            time.sleep(WAIT)
        if end == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ProcessLostError("another one is gone") if end == "lost" else OutOfMemoryError("out of memory at step 3")

    monkeypatch.setattr(peftlab.runs.run, "run", fails)
    folder = written(tmp_path / "suite", "{processes: 2}")
    bench(folder, Options(), lambda line: None)
    records = [stored.record for stored in Store(folder).records().values()]
    assert [(record.state, record.reason) for record in records] == [(state, reason)] * 2
    assert all(record.seconds is not None and record.seconds < WAIT for record in records)  # nobody was waited for
    assert not list((folder / ".bench" / "work").iterdir())


def test_more_processes_than_gpus_are_refused_and_a_cpu_takes_any_number() -> None:
    with pytest.raises(UserError, match=r"placement.processes: 4 need one GPU each, and this machine has 2"):
        Placement(processes=4).check(2)
    Placement(processes=4).check(4)
    Placement(processes=4).check(0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (SUITE + "placement: {sharded: true}\n", r"suite.yaml:\d+: placement: sharded: true needs several processes"),
        (SUITE + "placement: {processes: 0}\n", r"suite.yaml:\d+: placement.processes: .*found 0"),
        (
            SUITE.replace("steps: 2", "steps: 2, auto_micro_batch: true") + "placement: {processes: 2}\n",
            "auto_micro_batch: not supported with several processes",
        ),
    ],
)
def test_a_placement_that_cannot_be_is_refused_in_a_line(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(text)
    with pytest.raises(UserError, match=says):
        load_suite(tmp_path)


def test_a_profile_of_several_processes_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "suite", "{processes: 2}")
    with pytest.raises(UserError, match="a profile is of one process"):
        profile_suite(folder, Options(), lambda line: None)
    assert not (folder / store.FOLDER).exists()
