"""Runs in several processes: equal results, and a process that fails ends the others."""

import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from tests.suites.tiny import LORA, write_suite


def write_placed(folder: Path, **placement: Any) -> Path:
    return write_suite(
        folder,
        methods={"lora": LORA},
        quantizations=["none", "int8"],
        data={"test_examples": 21},
        placement=placement,
    )


@pytest.mark.slow
def test_two_processes_give_the_result_of_one_and_the_record_says_so(tmp_path: Path) -> None:
    assert Accelerator(cpu=True).num_processes == 1  # state that the forked processes must reset
    folders = [
        write_placed(tmp_path / "one"),
        write_placed(tmp_path / "two", processes=2),
        write_placed(tmp_path / "sharded", processes=2, sharded=True),
    ]
    for folder in folders:
        bench(folder, Options(), lambda line: None)
    one, two, shards = (Store(folder).records() for folder in folders)
    assert one.keys() == two.keys() == shards.keys()
    for digest, stored in one.items():
        single = stored.record.result
        assert single is not None
        for other, sharded in ((two[digest], False), (shards[digest], True)):
            if sharded and stored.recipe.quantization.kind == "int8":
                assert other.record.state == "unsupported"
                continue
            placed = other.record.result
            assert placed is not None
            assert placed.metrics == single.metrics
            assert other.predictions().columns == stored.predictions().columns
            assert placed.curve.losses == pytest.approx(single.curve.losses, abs=1e-5)
            assert (placed.environment.processes, placed.environment.sharded) == (2, sharded)
    assert "Each run uses" not in setup(read_analysis(folders[0]))[0]
    analysis = read_analysis(folders[2])
    assert "Each run uses 2 processes, each with a shard of the model (FSDP2)." in setup(analysis)[0]
    assert "1 thread, 2 processes with a shard of the model each" in analysis.environments["addresses"]
    again = reproduce(next(iter(two.values())).path)
    assert again.same
    assert again.differences == []


def ended(work: Callable[[], object], folder: Path, limit: float = 30.0) -> workers.Ended:
    child = workers.start(folder / "work", folder / "log", work)
    while (end := child.ended(limit)) is None:
        time.sleep(0.02)
    return end


def _one_of_two(folder: Path, end: str) -> None:
    """The first process waits; the second one fails."""
    (folder / os.environ["RANK"]).write_text(str(os.getpid()))
    if os.environ["RANK"] == "0":
        time.sleep(30)
    while not (folder / "0").exists():
        time.sleep(0.01)
    if end == "raises":
        raise ValueError("no")
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("end", "status"), [("raises", 1 << 8), ("killed", signal.SIGKILL)])
def test_when_one_process_fails_all_end_in_the_same_way(end: str, status: int, tmp_path: Path) -> None:
    end_of_all = ended(
        functools.partial(Placement(processes=2).run, functools.partial(_one_of_two, tmp_path, end)), tmp_path
    )
    assert (end_of_all.status, end_of_all.late) == (status, False)
    assert _gone(tmp_path)


def test_processes_die_with_the_one_that_started_them(tmp_path: Path) -> None:
    work = functools.partial(Placement(processes=2).run, functools.partial(_both_wait, tmp_path))
    child = workers.start(tmp_path / "work", tmp_path / "log", work)
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
    """True if the processes whose ids are in `folder` end within five seconds."""
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
            ("killed", "out of memory", "killed by the system in 3 attempts, probably for lack of memory"),
            (
                "lost",
                "failed",
                "its process ended with exit code 1 and left no record",
            ),  # the first one would wait forever
        ],
    ),
)
def test_the_record_has_the_cause_not_its_effect_on_the_other_processes(
    end: str, state: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(recipe: object, folder: Path) -> None:
        if (os.environ["RANK"] == "0") == (end != "lost"):
            time.sleep(WAIT)
        if end == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise (
            ProcessLostError("another process is gone")
            if end == "lost"
            else OutOfMemoryError("out of memory at step 3")
        )

    monkeypatch.setattr(peftlab.runs.run, "run", fails)
    folder = write_placed(tmp_path / "suite", processes=2)
    bench(folder, Options(), lambda line: None)
    records = [stored.record for stored in Store(folder).records().values()]
    assert [(record.state, record.reason) for record in records] == [(state, reason)] * 2
    assert all(record.seconds is not None and record.seconds < WAIT for record in records)  # no process was waited for
    assert not list((folder / ".bench" / "work").iterdir())


def test_more_processes_than_gpus_are_refused_and_a_cpu_runs_any_number() -> None:
    with pytest.raises(UserError, match=r"placement.processes: 4 need one GPU each, and this machine has 2"):
        Placement(processes=4).check(2)
    Placement(processes=4).check(4)
    Placement(processes=4).check(0)


@pytest.mark.parametrize(
    ("placement", "training", "message"),
    [
        ({"sharded": True}, {}, r"suite.yaml:\d+: placement: sharded: true needs several processes"),
        ({"processes": 0}, {}, r"suite.yaml:\d+: placement.processes: .*found 0"),
        ({"processes": 2}, {"auto_micro_batch": True}, "auto_micro_batch: not supported with several processes"),
    ],
)
def test_an_impossible_placement_is_one_line(
    placement: dict[str, Any], training: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        load_suite(write_suite(tmp_path, placement=placement, training=training))


def test_a_profile_of_several_processes_is_refused(tmp_path: Path) -> None:
    folder = write_placed(tmp_path / "suite", processes=2)
    with pytest.raises(UserError, match="a profile is of one process"):
        profile_suite(folder, Options(), lambda line: None)
    assert not (folder / store.FOLDER).exists()
