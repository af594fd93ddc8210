"""The scheduler: records are replaced, not doubled; it polls little; and it fails before anything runs."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

import peftlab.runs.run
from peftlab.errors import UserError
from peftlab.suites import scheduler, workers
from peftlab.suites.plan import Plan, current_plan
from peftlab.suites.run_jobs import bench
from peftlab.suites.scheduler import Options
from peftlab.suites.store import Store, Stored
from peftlab.suites.suite import Suite
from tests.suites.tiny import write_suite

Patch = pytest.MonkeyPatch


def leave_nothing(recipe: object, folder: Path) -> None:
    """A run that leaves no result, and so fails."""


def test_the_folder_of_a_dead_runner_is_deleted_with_the_next_attempt(tmp_path: Path) -> None:
    for name in ("aaaa-host-1-dead", "aaaab-host-1-dead", "bbbb-host-2-dead"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.json.part").touch()
    place = workers.workplace(tmp_path, "aaaa", "host-3-alive")
    assert place == tmp_path / "aaaa-host-3-alive"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["aaaab-host-1-dead", "bbbb-host-2-dead"]


def test_a_record_named_by_an_older_digest_is_replaced_not_doubled(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(peftlab.runs.run, "run", leave_nothing)
    folder = write_suite(tmp_path / "tiny")
    bench(folder, Options(), lambda line: None)
    for path in list((folder / "results").glob("*.json")):
        path.rename(path.with_name(f"{path.name[:-17]}{'0' * 12}.json"))
    bench(folder, Options(retry=True), lambda line: None)
    assert {stored.recipe.method.kind for stored in Store(folder).records().values()} == {"lora", "head"}
    assert len(list((folder / "results").glob("*.json"))) == 2


@pytest.mark.parametrize("jobs", [1, 3])
def test_the_plan_is_made_once_per_ended_run_however_long_runs_take(
    tmp_path: Path, monkeypatch: Patch, jobs: int
) -> None:
    plans: list[object] = []

    def counting(suite: Suite, records: Mapping[str, Stored]) -> Plan:
        plans.append(suite)
        return current_plan(suite, records)

    monkeypatch.setattr(scheduler, "current_plan", counting)
    monkeypatch.setattr(scheduler, "POLL", 0.01)
    monkeypatch.setattr(peftlab.runs.run, "run", lambda recipe, folder: time.sleep(1))
    folder = write_suite(tmp_path / "tiny")
    bench(folder, Options(jobs=jobs), lambda line: None)
    assert len(plans) <= 2 + 2 * len(Store(folder).records())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("results", "results: cannot be written: .*results is not a folder"),
        (".bench", r"\.bench: cannot be written: File exists"),
        (".bench/claims.sqlite", r"claims\.sqlite: file is not a database; it may be deleted when no runner"),
    ],
)
def test_a_folder_that_cannot_be_written_is_an_error_before_anything_runs(
    name: str, message: str, tmp_path: Path
) -> None:
    folder = write_suite(tmp_path / "tiny")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("neither a folder nor a database")
    with pytest.raises(UserError, match=message):
        bench(folder, Options())


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="drops the rights of root")
def test_a_folder_of_another_user_is_an_error_before_anything_runs(tmp_path: Path) -> None:
    folder = write_suite(tmp_path / "tiny")
    (folder / "results").mkdir(mode=0o555)
    code = (
        "import pathlib; from peftlab.suites.scheduler import Options; from peftlab.suites.run_jobs import bench;"
        f"bench(pathlib.Path({str(folder)!r}), Options())"
    )
    unprivileged = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-all"]
    done = subprocess.run([*unprivileged, sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stderr.splitlines()[-1].endswith("results: cannot be written: permission denied")
    assert not (folder / ".bench").exists()
