"""Measuring a suite: a ledger for each combination that has none, one process at a time, so that times are its own."""

from __future__ import annotations

import functools
import os
import shutil
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

from peftlab.errors import UserError
from peftlab.io.atomic import check_writable
from peftlab.profiling.profile import MIB
from peftlab.recipe import Recipe
from peftlab.suites import gpus, workers
from peftlab.suites.claims import Claims
from peftlab.suites.eta import duration
from peftlab.suites.matching import matched_suite
from peftlab.suites.plan import current_plan
from peftlab.suites.profiles import ProfileRecord, ProfileStore, StoredProfile, profile_digest
from peftlab.suites.scheduler import POLL, WORK, Options, Say
from peftlab.suites.store import RETRYABLE, Store, suite_folder
from peftlab.suites.suite import Suite
from peftlab.suites.workers import Child

ALONE = "ledger"  # the claim of whoever measures: no two runners at once


def profile_suite(folder: Path, options: Options, say: Say = print) -> None:
    """Measure all of the suite that has no ledger; return when each combination has one, or a reason for none."""
    suite = matched_suite(folder)
    if suite.placement.processes > 1:
        raise UserError(f"{folder}: placement: a ledger is of one process; measure a suite without it")
    workers.prepare(options.threads)
    measurer = _Measurer(folder, suite, options, say)
    try:
        measurer.work()
    finally:
        measurer.close()


def to_measure(suite: Suite, store: Store) -> list[Recipe]:
    """A recipe for each combination that validation lets through: with the chosen learning rate, or the base rate."""
    plan = current_plan(suite, store.records())
    return [cells[0] if cells else suite.example(row) for row, cells in plan.cells.items()]


class _Measurer:
    def __init__(self, folder: Path, suite: Suite, options: Options, say: Say) -> None:
        self.suite, self.options, self.say = suite, options, say
        self.store, self.ledgers = Store(folder), ProfileStore(folder)
        check_writable(self.ledgers.folder)
        self.work_folder = suite_folder(folder) / WORK
        self.claims = Claims(self.work_folder / "claims.sqlite", options.lease)
        self.again = {  # by digest: when the record was written that is to be replaced
            digest: measured.path.stat().st_mtime_ns
            for digest, measured in self.ledgers.read().items()
            if options.retry and measured.record.state in RETRYABLE
        }
        self.child: Child | None = None
        self.claimed: list[str] = []
        self.imported = False

    def work(self) -> None:
        waiting = False
        while True:
            recipes, read = to_measure(self.suite, self.store), self.ledgers.read()
            left = [recipe for recipe in recipes if not self._ended(profile_digest(recipe), read)]
            if not left:
                return
            if self._take(ALONE) is None:
                if not waiting:
                    waiting = True
                    self.say(f"{len(left)} ledgers left, and another runner measures; waiting for it")
                time.sleep(POLL)
                continue
            for recipe in left:  # all are free, but for one that a dead runner has just begun
                attempt = self._take(profile_digest(recipe))
                if attempt is not None:
                    waiting = False
                    self._measure(recipe, attempt)
                    break
            else:
                time.sleep(POLL)
            self._give_back(ALONE)

    def close(self) -> None:
        """Stop what still runs, and give it back."""
        if self.child is not None:
            self.child.stop()
        for key in list(self.claimed):
            self._give_back(key)
        self.claims.close()

    def _take(self, key: str) -> int | None:
        attempt = self.claims.take(key, lambda: key != ALONE and self._ended(key))
        if attempt is not None:
            self.claimed.append(key)
        return attempt

    def _give_back(self, key: str) -> None:
        self.claims.forget(key)
        self.claimed.remove(key)

    def _ended(self, digest: str, read: Mapping[str, StoredProfile] | None = None) -> bool:
        measured = (self.ledgers.read() if read is None else read).get(digest)
        return measured is not None and measured.path.stat().st_mtime_ns != self.again.get(digest)

    def _measure(self, recipe: Recipe, attempt: int) -> None:
        if not self.imported:
            self.say(f"{self.suite.name}: importing once, then a process a ledger, one at a time")
            if not gpus.visible():
                workers.import_everything(self.options.threads)
                import peftlab.profiling.measure  # noqa: F401

            self.imported = True
        digest, limit = profile_digest(recipe), self.suite.time_limit
        folder = workers.workplace(self.work_folder / "work", f"ledger-{digest}", self.claims.owner)
        log = self.work_folder / "logs" / f"ledger-{recipe.name}-{digest}.log"
        self.child = workers.start(folder, log, functools.partial(_leave_ledger, recipe, folder, self.options.threads))
        renewed = 0.0
        while (ended := self.child.ended(limit)) is None:
            if time.monotonic() - renewed > self.options.lease / 4:
                self.claims.renew()
                renewed = time.monotonic()
            time.sleep(POLL)
        self.child = None
        left = folder / workers.RECORD
        record = ProfileRecord.model_validate_json(left.read_bytes()) if left.exists() else None
        shutil.rmtree(folder, ignore_errors=True)
        if record is None:
            verdict = workers.classify_exit(ended, attempt, limit)
            if verdict is None:
                self.claims.release(digest)
                self.claimed.remove(digest)
                self.say(f"{recipe.name}: its process was killed by signal {os.WTERMSIG(ended.status)}; once more")
                return
            record = ProfileRecord(state=verdict[0], reason=verdict[1], recipe=recipe.to_record())
        record = record.model_copy(update={"seconds": ended.seconds})
        written = self.claims.commit(digest, lambda: self.ledgers.write(recipe, record))
        self.claimed.remove(digest)
        self._say_end(recipe, record, written)

    def _say_end(self, recipe: Recipe, record: ProfileRecord, written: bool) -> None:
        said = f"{record.state}: {record.reason}"
        if record.ledger is not None:
            said = f"peak {record.ledger.memory.peak / MIB:,.2f} MiB"
        if not written:
            said += "; taken over by another runner, thrown away"
        digests = {profile_digest(recipe) for recipe in to_measure(self.suite, self.store)}
        count = len(digests & self.ledgers.read().keys())
        self.say(f"{count}/{len(digests)}  {recipe.name}: {said}; {duration(record.seconds)}")


def _leave_ledger(recipe: Recipe, folder: Path, threads: int) -> None:
    """In a process of its own: leave the measurement in `folder`."""
    workers.import_everything(threads)
    from peftlab.profiling.measure import measure

    described = recipe.to_record()
    try:
        record = ProfileRecord(state="done", ledger=measure(recipe), recipe=described)
    except Exception as error:  # each way to end is a record: nothing disappears
        traceback.print_exc()
        state, reason = workers.classify_error(error)
        record = ProfileRecord(
            state=state, reason=reason, recipe=described, environment=workers.current_environment(recipe)
        )
    workers.leave(folder, record)
