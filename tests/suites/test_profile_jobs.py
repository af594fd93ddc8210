"""Profiles of a suite: one per row, measured one at a time, or the reason why there is none."""

import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from peftlab.profiling.measure import measure
from peftlab.recipe import Recipe
from peftlab.suites import profile_jobs, workers
from peftlab.suites.claims import Claims
from peftlab.suites.profile_jobs import EXCLUSIVE, profile_suite
from peftlab.suites.profiles import ProfileRecord, ProfileStore
from peftlab.suites.scheduler import Options
from peftlab.suites.store import Store
from tests.suites.tiny import FULL, HEAD, LORA, write_suite


@pytest.mark.slow
def test_every_row_gets_a_profile_or_the_reason_for_none_one_at_a_time(tmp_path: Path) -> None:
    lora = {**LORA, "method": {"kind": "lora", "targets": ["nowhere"]}}
    folder = write_suite(tmp_path / "tiny", methods={"lora": lora, "head": HEAD, "full": FULL})
    other = Claims(folder / ".bench" / "claims.sqlite", lease=600)
    assert other.take(EXCLUSIVE.key, lambda: False) == 1  # another runner measures
    messages: list[str] = []

    def say(line: str) -> None:
        messages.append(line)
        if "another runner" in line:
            assert not ProfileStore(folder).records()
            other.forget(EXCLUSIVE.key)

    profile_suite(folder, Options(), say)
    assert messages[:2] == [
        "tiny: importing once, then one process per profile, one at a time",
        "3 profiles left, and another runner measures; waiting for it",
    ]
    profiles = {stored.recipe.method.kind: stored for stored in ProfileStore(folder).records().values()}
    assert {kind: stored.record.state for kind, stored in profiles.items()} == {
        "lora": "failed", "head": "done", "full": "done"
    }  # fmt: skip
    assert "'nowhere' matches no linear layer" in str(profiles["lora"].record.reason)
    assert profiles["lora"].record.measured_on is not None
    head, full = profiles["head"].record.profile, profiles["full"].record.profile
    assert head is not None
    assert full is not None
    assert full.times is not None
    assert head.memory.optimizer < full.memory.optimizer
    memory = measure(profiles["head"].recipe, timed=False).memory  # as `peftlab profile` does it
    assert head.memory.model_copy(update={"process_peak": None}) == memory.model_copy(update={"process_peak": None})
    assert not Store(folder).records()  # nothing was run
    assert other.take(EXCLUSIVE.key, lambda: False) is not None  # the claim was given up
    other.close()
    again: list[str] = []
    profile_suite(folder, Options(), again.append)
    assert again == []


def test_a_measurement_that_is_killed_is_retried_and_recorded_after_three_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "init_worker", lambda parent, log: os.kill(os.getpid(), signal.SIGKILL))
    folder = write_suite(tmp_path / "tiny", methods={"lora": LORA})
    messages: list[str] = []
    profile_suite(folder, Options(), messages.append)
    assert sum("killed by signal 9; retrying" in line for line in messages) == 2
    (stored,) = ProfileStore(folder).records().values()
    assert (stored.record.state, stored.record.profile) == ("out of memory", None)
    before = stored.path.stat().st_mtime_ns
    profile_suite(folder, Options(), messages.append)
    assert stored.path.stat().st_mtime_ns == before
    profile_suite(folder, Options(retry=True), messages.append)
    assert stored.path.stat().st_mtime_ns > before


def test_a_profile_whose_claim_has_passed_to_another_runner_is_discarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_suite(tmp_path / "tiny", methods={"lora": LORA})

    def superseded(recipe: Recipe, into: Path, threads: int) -> None:
        record = ProfileRecord(state="failed", reason="by the other", recipe=recipe.model_dump(mode="json"))
        with closing(sqlite3.connect(folder / ".bench" / "claims.sqlite")) as database, database:
            database.execute("UPDATE claims SET owner = 'other', until = 1e12")
        ProfileStore(folder).write(recipe, record)
        workers.leave(into, record.model_copy(update={"reason": "too late"}))

    monkeypatch.setattr(profile_jobs, "_profile", superseded)
    messages: list[str] = []
    profile_suite(folder, Options(), messages.append)
    assert "superseded by another runner, discarded" in messages[-1]
    (stored,) = ProfileStore(folder).records().values()
    assert stored.record.reason == "by the other"
