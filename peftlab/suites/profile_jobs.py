"""The profiles of a suite as jobs: each measures one row, one process at a time on the machine, so that times hold."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from peftlab.errors import UserError
from peftlab.profiling.profile import MIB
from peftlab.recipe import Recipe
from peftlab.suites import gpus, workers
from peftlab.suites.claims import Claims
from peftlab.suites.eta import duration
from peftlab.suites.gpus import Slot, Slots
from peftlab.suites.matching import matched_suite
from peftlab.suites.profiles import ProfileRecord, ProfileStore, StoredProfile, profile_digest
from peftlab.suites.scheduler import Jobs, Options, Say, run_jobs
from peftlab.suites.store import State
from peftlab.suites.suite import Suite
from peftlab.suites.workers import Ended

EXCLUSIVE = Slot("profile", {})  # claimed by the one runner that measures


def profile_suite(folder: Path, options: Options, say: Say = print) -> None:
    """Profile every row of a suite that has no profile; return when each has one, or the reason why it has none."""
    suite = matched_suite(folder)
    if suite.placement.processes > 1:
        raise UserError(f"{folder}: placement: a profile is of one process; profile a suite without placement")
    options = Options(jobs=1, threads=options.threads, lease=options.lease, retry=options.retry)
    run_jobs(ProfileJobs(folder, suite, options), options, say)


class ProfileJobs(Jobs[ProfileRecord]):
    """One profile for each row that validation accepts."""

    prefix: ClassVar[str] = "profile-"

    def __init__(self, folder: Path, suite: Suite, options: Options) -> None:
        super().__init__(folder, suite, options)
        self.profiles = ProfileStore(folder)

    @property
    def folder(self) -> Path:
        return self.profiles.folder

    def key(self, recipe: Recipe) -> str:
        return profile_digest(recipe)

    def recipes(self) -> list[Recipe]:
        """One recipe per row: with the chosen learning rate if there is one, or else the base rate."""
        return [cells[0] if cells else self.suite.example(row) for row, cells in self.plan().cells.items()]

    def records(self) -> Mapping[str, StoredProfile]:
        return self.profiles.records()

    def slots(self, claims: Claims) -> Slots:
        return Slots([EXCLUSIVE], claims)

    def prepare(self, processes: int, say: Say) -> None:
        say(f"{self.suite.name}: importing once, then one process per profile, one at a time")
        if not gpus.visible():
            workers.import_everything(self.options.threads)
            import peftlab.profiling.measure  # noqa: F401  # late: torch

    def waiting(self, count: int) -> str:
        return f"{count} profiles left, and another runner measures; waiting for it"

    def label(self, recipe: Recipe) -> str:
        return recipe.name

    def work(self, recipe: Recipe, folder: Path) -> Callable[[], object]:
        return functools.partial(_profile, recipe, folder, self.options.threads)

    def read(self, folder: Path) -> ProfileRecord | None:
        path = folder / workers.RECORD
        return ProfileRecord.model_validate_json(path.read_bytes()) if path.exists() else None

    def failure(self, recipe: Recipe, state: State, reason: str) -> ProfileRecord:
        return ProfileRecord(state=state, reason=reason, recipe=recipe.model_dump(mode="json"))

    def with_usage(self, record: ProfileRecord, ended: Ended) -> ProfileRecord:
        return record.model_copy(update={"seconds": ended.seconds})

    def write(self, recipe: Recipe, record: ProfileRecord, folder: Path) -> None:
        self.profiles.write(recipe, record)

    def progress(self, recipe: Recipe, record: ProfileRecord, *, superseded: bool, processes: int) -> str:
        text = f"{record.state}: {record.reason}"
        if record.profile is not None:
            text = f"peak {record.profile.memory.peak / MIB:,.2f} MiB"
        if superseded:
            text += "; superseded by another runner, discarded"
        keys = {self.key(planned) for planned in self.recipes()}
        count = len(keys & self.records().keys())
        return f"{count}/{len(keys)}  {recipe.name}: {text}; {duration(record.seconds)}"


def _profile(recipe: Recipe, folder: Path, threads: int) -> None:
    """In a process of its own: measure, and leave the record in `folder`."""
    workers.import_everything(threads)
    from peftlab.profiling.measure import measure  # late: on a machine with GPUs nothing is imported before the fork

    values = recipe.model_dump(mode="json")
    try:
        record = ProfileRecord(state="done", profile=measure(recipe), recipe=values)
    except Exception as error:  # every way to end is a record
        traceback.print_exc()
        state, reason = workers.classify_error(error)
        record = ProfileRecord(
            state=state, reason=reason, recipe=values, environment=workers.current_environment(recipe)
        )
    workers.leave(folder, record)
