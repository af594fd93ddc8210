"""One scheduler for all work of a suite: every open job, one process per job, shared among several runners."""

from __future__ import annotations

import abc
import functools
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, Protocol, TypeVar

from pydantic import BaseModel

from peftlab.io.atomic import check_writable
from peftlab.recipe import Recipe
from peftlab.suites import workers
from peftlab.suites.claims import Claims
from peftlab.suites.gpus import Slot, Slots
from peftlab.suites.plan import Plan, current_plan
from peftlab.suites.store import RETRYABLE, State, Store, Stored, suite_folder
from peftlab.suites.suite import Suite
from peftlab.suites.workers import Child, Ended

WORK = ".bench"  # in the suite's folder, not committed: claims, logs and the folders of running jobs
LEASE = 60.0  # seconds without a sign of life after which other runners may claim a runner's jobs
POLL = 0.2  # seconds
IDLE = 0.5  # further seconds where all that is left is claimed by others

NO_SLOT = Slot("", {})

Say = Callable[[str], object]


@dataclass(frozen=True)
class Options:
    """Options of a runner."""

    jobs: int = 1
    """Processes at a time."""
    threads: int = 1
    """Threads of each process."""
    lease: float = LEASE
    """Seconds."""
    keep: bool = False
    """Keep the folders of finished runs, with the adapters, in .bench/runs/."""
    retry: bool = False
    """Repeat jobs that ended as out of memory, timed out or failed."""


R = TypeVar("R", bound=BaseModel)


class StoredRecord(Protocol):
    """A record in its file."""

    @property
    def path(self) -> Path: ...
    @property
    def state(self) -> State: ...


class Jobs(abc.ABC, Generic[R]):
    """One kind of work on a suite: the jobs there are, what a job does in its process, and how its record is stored.

    A job is identified by a recipe; `key` is the digest of what its record depends on.
    """

    prefix: ClassVar[str] = ""
    """Prefix of the folders and log files of these jobs."""

    def __init__(self, folder: Path, suite: Suite, options: Options) -> None:
        self.suite, self.options = suite, options
        self.runs = Store(folder)
        self.work_folder = suite_folder(folder) / WORK
        self._plan: tuple[Mapping[str, Stored], Plan] | None = None

    def plan(self) -> Plan:
        """The suite's plan, given the records of its runs. Cached until a record changes: planning is slow."""
        records = self.runs.records()
        if self._plan is None or self._plan[0] != records:
            self._plan = records, current_plan(self.suite, records)
        return self._plan[1]

    @property
    @abc.abstractmethod
    def folder(self) -> Path:
        """Folder of the records."""

    @abc.abstractmethod
    def key(self, recipe: Recipe) -> str:
        """Identifies a job and its record."""

    @abc.abstractmethod
    def recipes(self) -> list[Recipe]:
        """All jobs known by now, in the order in which they are to run."""

    @abc.abstractmethod
    def records(self) -> Mapping[str, StoredRecord]:
        """Stored records by key."""

    def unsupported(self) -> Iterable[tuple[Recipe, R]]:
        """Jobs that need no process because validation refuses them, with their records."""
        return ()

    @abc.abstractmethod
    def slots(self, claims: Claims) -> Slots | None:
        """Resources of which each process gets a slot; None if only `Options.jobs` limits the processes."""

    @abc.abstractmethod
    def prepare(self, processes: int, say: Say) -> None:
        """Do once what all jobs need, before any is claimed: imports, packages. `processes` run at a time."""

    @abc.abstractmethod
    def waiting(self, count: int) -> str:
        """Message while other runners hold all of the `count` open jobs."""

    @abc.abstractmethod
    def label(self, recipe: Recipe) -> str:
        """Name of a job in messages."""

    @abc.abstractmethod
    def work(self, recipe: Recipe, folder: Path) -> Callable[[], object]:
        """The function that a job's process calls. It leaves the record in `folder` by `workers.leave`."""

    @abc.abstractmethod
    def read(self, folder: Path) -> R | None:
        """The record that a process left in `folder`; None if it left none."""

    @abc.abstractmethod
    def failure(self, recipe: Recipe, state: State, reason: str) -> R:
        """The record of a job whose process left none."""

    @abc.abstractmethod
    def with_usage(self, record: R, ended: Ended) -> R:
        """The record with what the process took."""

    @abc.abstractmethod
    def write(self, recipe: Recipe, record: R, folder: Path) -> None:
        """Store the record, and predictions that the process left in `folder`."""

    def keep(self, recipe: Recipe, record: R, folder: Path) -> None:
        """Move what is to outlive the process's folder."""
        return

    @abc.abstractmethod
    def progress(self, recipe: Recipe, record: R, *, superseded: bool, processes: int) -> str:
        """Message at the end of a job. `superseded`: another runner's record is stored instead."""


@dataclass
class _Running:
    recipe: Recipe
    child: Child
    attempt: int
    slot: Slot


class Scheduler(Generic[R]):
    """Runs the open jobs of a suite. Several schedulers, in several processes, may work on one suite."""

    def __init__(self, jobs: Jobs[R], options: Options, say: Say) -> None:
        self.jobs, self.options, self.say = jobs, options, say
        check_writable(jobs.folder)
        self.claims = Claims(jobs.work_folder / "claims.sqlite", options.lease)
        self.running: dict[int, _Running] = {}
        self.replaced = {  # by key, the time of writing of the record that is to be replaced
            key: stored.path.stat().st_mtime_ns
            for key, stored in jobs.records().items()
            if options.retry and stored.state in RETRYABLE
        }
        self.renewed = 0.0
        self.prepared = False
        self.processes = options.jobs
        self.slots: Slots | None = None

    def run(self) -> None:
        """Return when every job has a record."""
        waiting = False
        while True:
            if len(self.running) == self.processes:
                self._wait()
                continue
            open_jobs = self._open_jobs()
            if not open_jobs:
                return
            if not self.prepared:
                self._prepare()
            if self._start_one(open_jobs):
                waiting = False
            else:
                if not self.running and not waiting:
                    waiting = True
                    self.say(self.jobs.waiting(len(open_jobs)))
                time.sleep(IDLE)
            self._wait()

    def close(self) -> None:
        """Stop running jobs and give up their claims."""
        for job in self.running.values():
            job.child.stop()
            self.claims.forget(self.jobs.key(job.recipe))
            self._release(job.slot)
        self.running.clear()
        self.claims.close()

    def _open_jobs(self) -> list[Recipe]:
        records = self.jobs.records()  # before the plan, so that no job is missed that a new record adds to the plan
        open_jobs = [recipe for recipe in self.jobs.recipes() if not self._ended(self.jobs.key(recipe), records)]
        for recipe, record in self.jobs.unsupported():
            key = self.jobs.key(recipe)
            if key not in records:
                self.claims.take(key, lambda: False)
                self.claims.commit(key, functools.partial(self.jobs.write, recipe, record, self.jobs.work_folder))
        return open_jobs

    def _ended(self, key: str, records: Mapping[str, StoredRecord] | None = None) -> bool:
        stored = (self.jobs.records() if records is None else records).get(key)
        if stored is not None and stored.state == "unsupported":  # when it was written; the plan has it now
            return False
        return stored is not None and stored.path.stat().st_mtime_ns != self.replaced.get(key)

    def _prepare(self) -> None:
        self.slots = self.jobs.slots(self.claims)
        if self.slots is not None:
            self.processes = min(self.processes, len(self.slots))
        self.jobs.prepare(self.processes, self.say)
        self.prepared = True

    def _start_one(self, open_jobs: list[Recipe]) -> bool:
        """Start the first job that no runner has claimed. False if there is none, or no slot for it."""
        slot = NO_SLOT if self.slots is None else self.slots.take()
        if slot is None:
            return False
        claimed = {self.jobs.key(job.recipe) for job in self.running.values()}
        for recipe in open_jobs:
            key = self.jobs.key(recipe)
            if key in claimed:
                continue
            attempt = self.claims.take(key, functools.partial(self._ended, key))
            if attempt is not None:
                self._start(recipe, attempt, slot)
                return True
        self._release(slot)
        return False

    def _start(self, recipe: Recipe, attempt: int, slot: Slot) -> None:
        key, prefix = self.jobs.key(recipe), self.jobs.prefix
        folder = workers.workplace(self.jobs.work_folder / "work", f"{prefix}{key}", self.claims.owner)
        log = self.jobs.work_folder / "logs" / f"{prefix}{recipe.name}-{key}.log"
        child = workers.start(folder, log, self.jobs.work(recipe, folder), slot.environment)
        self.running[child.pid] = _Running(recipe, child, attempt, slot)

    def _release(self, slot: Slot) -> None:
        if self.slots is not None:
            self.slots.give_back(slot)

    def _wait(self) -> None:
        """Wait for `POLL` seconds, or handle a process that has ended."""
        now = time.monotonic()
        if now - self.renewed > self.options.lease / 4:
            self.claims.renew()
            self.renewed = now
        for pid, job in list(self.running.items()):
            ended = job.child.ended(self.jobs.suite.time_limit)
            if ended is not None:
                del self.running[pid]
                self._release(job.slot)
                self._end(job, ended)
                return
        time.sleep(POLL)

    def _end(self, job: _Running, ended: Ended) -> None:
        """Store the record that the process left, if the job is still claimed by this runner."""
        recipe, folder, key = job.recipe, job.child.folder, self.jobs.key(job.recipe)
        record = self.jobs.read(folder)
        if record is None:
            verdict = workers.classify_exit(ended, job.attempt, self.jobs.suite.time_limit)
            if verdict is None:
                self.claims.release(key)
                signal_number = os.WTERMSIG(ended.status)
                self.say(f"{self.jobs.label(recipe)}: its process was killed by signal {signal_number}; retrying")
                shutil.rmtree(folder, ignore_errors=True)
                return
            record = self.jobs.failure(recipe, *verdict)
        record = self.jobs.with_usage(record, ended)
        written = self.claims.commit(key, functools.partial(self.jobs.write, recipe, record, folder))
        if written:
            self.jobs.keep(recipe, record, folder)
        shutil.rmtree(folder, ignore_errors=True)
        self.say(self.jobs.progress(recipe, record, superseded=not written, processes=self.processes))


def run_jobs(jobs: Jobs[R], options: Options, say: Say) -> None:
    """Run all open jobs; return when every job has a record, by this runner or another."""
    workers.prepare(options.threads)
    scheduler = Scheduler(jobs, options, say)
    try:
        scheduler.run()
    finally:
        scheduler.close()
