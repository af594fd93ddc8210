"""Runners of one suite, killed and stopped at random: every run gives exactly one result."""

import contextlib
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from peftlab.suites.plan import make_plan
from peftlab.suites.run_jobs import bench
from peftlab.suites.scheduler import Options
from peftlab.suites.store import Store, validation_scores
from peftlab.suites.suite_file import load_suite
from tests.faults.conftest import counted
from tests.suites.tiny import HEAD, write_suite

LEASE = 2.0  # seconds


def write_trials(folder: Path, *, seeds: list[int], steps: int) -> None:
    """Write a suite of two trials and a run per seed, each short if there are few steps."""
    write_suite(
        folder,
        seeds=seeds,
        trials={"points": 2, "extensions": 0},
        methods={"head": HEAD},
        reference="head",
        data={"train_examples": 4, "validation_examples": 2, "test_examples": 2},
        training={"steps": steps, "batch_tokens": 64},
    )


def runner(folder: Path, log: Path) -> int:
    """Fork a runner of the suite that logs the digests of the results it writes."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        write = Store.write

        def logged(self, recipe, record, predictions):  # type: ignore[no-untyped-def]
            path = write(self, recipe, record, predictions)
            with log.open("a") as file:
                file.write(f"{recipe.digest}\n")
            return path

        Store.write = logged  # type: ignore[method-assign]
        bench(folder, Options(lease=LEASE), lambda line: None)
        code = 0
    finally:
        os._exit(code)


def alive(pids: set[int]) -> set[int]:
    """Processes that still run; fails if one has ended with an error."""
    for pid in list(pids):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0
            pids.discard(pid)
    return pids


@pytest.mark.parametrize(
    ("runners", "faults", "number"),
    [
        pytest.param(3, 5, 0, marks=pytest.mark.slow),
        *(pytest.param(8, 30, number, marks=pytest.mark.night) for number in range(counted(1, 16))),
    ],
)
def test_every_run_ends_in_one_result_however_often_runners_are_killed(
    tmp_path: Path, runners: int, faults: int, number: int
) -> None:
    seeds = list(range(1, 3 * runners))  # enough that work is left at the last fault
    write_trials(tmp_path, seeds=seeds, steps=1)
    log = tmp_path / "log"
    chance = random.Random(runners + 100 * number)
    pids = {runner(tmp_path, log) for _ in range(runners)}
    stopped: dict[int, float] = {}  # by SIGSTOP, with the time of their SIGCONT
    killed = 0
    deadline = time.monotonic() + 500
    while alive(pids):
        assert time.monotonic() < deadline
        time.sleep(chance.uniform(0.1, 0.8))
        for pid in [pid for pid, until in stopped.items() if until < time.monotonic()]:
            os.kill(pid, signal.SIGCONT)
            del stopped[pid]
        free = sorted(pids - stopped.keys())
        if killed == faults or not free:
            continue
        killed += 1
        victim = chance.choice(free)
        if chance.random() < 0.3:
            os.kill(victim, signal.SIGSTOP)  # its lease ends, and then it continues
            stopped[victim] = time.monotonic() + 1.5 * LEASE
        else:
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)
            pids.discard(victim)
            pids.add(runner(tmp_path, log))
    assert killed
    suite, records = load_suite(tmp_path), Store(tmp_path).records()
    planned = {recipe.digest for recipe in make_plan(suite, validation_scores(records)).recipes}
    assert len(planned) == 2 + len(seeds)
    assert records.keys() == planned
    assert {stored.record.state for stored in records.values()} == {"done"}
    assert all(stored.predictions().statistics for stored in records.values())
    written = Counter(log.read_text().split())
    assert max(written.values()) == 1
    assert not list((tmp_path / "results").glob(".*"))
    assert not list((tmp_path / ".bench" / "work").iterdir())


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_run_of_a_killed_runner_ends_with_it(tmp_path: Path) -> None:
    write_trials(tmp_path, seeds=[1], steps=100000)
    pid = runner(tmp_path, tmp_path / "log")
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children")
        deadline = time.monotonic() + 60
        while not (workers := children.read_text().split()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(1)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    deadline = time.monotonic() + 30
    try:
        while running(int(workers[0])):
            assert time.monotonic() < deadline, "its run continued without it"
            time.sleep(0.1)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(workers[0]), signal.SIGKILL)
