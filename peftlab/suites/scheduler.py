"""Running a suite: whatever has no result, a process a run, forked from one that has imported everything once."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from peftlab.errors import ProcessLostError, UserError
from peftlab.io.atomic import check_writable
from peftlab.recipe import Recipe
from peftlab.suites import gpus, workers
from peftlab.suites.claims import Claims
from peftlab.suites.collect import collect, finished_runs
from peftlab.suites.eta import EtaEstimator, duration
from peftlab.suites.gpus import Slot, Slots
from peftlab.suites.matching import matched_suite
from peftlab.suites.plan import Plan, current_plan
from peftlab.suites.store import RETRYABLE, Predictions, Record, Store, Stored, suite_folder
from peftlab.suites.suite import Suite
from peftlab.suites.workers import Child, Ended

WORK = ".bench"  # in the suite's folder, not committed: claims, logs, runs at work
LEASE = 60.0  # seconds without a sign of life after which a runner's claims are anybody's
POLL = 0.2  # seconds
IDLE = 0.5  # seconds more where all that is left is taken

Say = Callable[[str], object]


@dataclass(frozen=True)
class Options:
    """How a runner runs."""

    jobs: int = 1  # processes at a time
    threads: int = 1  # each
    lease: float = LEASE
    keep: bool = False  # the run's folder with the adapter too, in .bench/runs/
    retry: bool = False  # what ended as out of memory, timed out or failed


def bench(folder: Path, options: Options, say: Say = print) -> Plan:
    """Run all of the suite that has no result and that no other runner is at; return when everything has ended."""
    suite = matched_suite(folder)
    workers.prepare(options.threads)
    runner = _Runner(folder, suite, options, say)
    try:
        return runner.work()
    finally:
        runner.close()


def adopt(folder: Path, runs: Path, say: Say = print) -> int:
    """Bring in finished runs that are this suite's, from anywhere below `runs`; return how many."""
    suite, store = matched_suite(folder), Store(folder)
    if not runs.is_dir():
        raise UserError(f"--adopt {runs}: no such folder")
    check_writable(store.folder)
    found = finished_runs(runs)
    adopted = 0
    while True:  # a trial more may tell the learning rate of further cells
        records = store.records()
        plan = current_plan(suite, records)
        new = [recipe for recipe in plan.recipes if recipe.digest in found and not _scored(records, recipe.digest)]
        if not new:
            say(f"{adopted} adopted; {len(found.keys() - records.keys())} others below {runs} are none of this suite's")
            return adopted
        for recipe in new:
            record, predictions = collect(found[recipe.digest][0])
            say(f"adopted {store.write(recipe, record, predictions).name}")
            adopted += 1


def _scored(records: Mapping[str, Stored], digest: str) -> bool:
    """Whether there is a result: a run that failed or was out of memory gives way to one that did not."""
    return digest in records and records[digest].record.state not in RETRYABLE


@dataclass
class _Running:
    recipe: Recipe
    child: Child
    attempt: int
    slot: Slot | None


class _Runner:
    def __init__(self, folder: Path, suite: Suite, options: Options, say: Say) -> None:
        self.suite, self.options, self.say = suite, options, say
        self.store = Store(folder)
        check_writable(self.store.folder)
        self.work_folder = suite_folder(folder) / WORK
        self.claims = Claims(self.work_folder / "claims.sqlite", options.lease)
        self.running: dict[int, _Running] = {}
        self.again = {  # by digest: when the record was written that is to be replaced
            digest: stored.path.stat().st_mtime_ns
            for digest, stored in self.store.records().items()
            if options.retry and stored.record.state in RETRYABLE
        }
        self.renewed = 0.0
        self.prepared = False
        self.jobs = options.jobs
        self.slots: Slots | None = None  # where there are GPUs
        self.planned: tuple[Mapping[str, Stored], Plan] | None = None  # and the records that it was made of

    def work(self) -> Plan:
        waiting = False
        while True:
            if len(self.running) == self.jobs:
                self._wait()
                continue
            records = self.store.records()
            plan = self._plan(records)
            open_recipes = [recipe for recipe in plan.recipes if not self._ended(recipe.digest, records)]
            here = {running.recipe.digest for running in self.running.values()}
            if not open_recipes:
                return plan
            if not self.prepared:
                self._prepare()
            slot = self.slots.take() if self.slots else None
            if self.slots and slot is None:  # all are with other runners
                time.sleep(IDLE)
                self._wait()
                continue
            for recipe in open_recipes:
                if recipe.digest in here:
                    continue
                attempt = self.claims.take(recipe.digest, functools.partial(self._ended, recipe.digest))
                if attempt is not None:
                    self._start(recipe, attempt, slot)
                    waiting = False
                    break
            else:
                if self.slots and slot:
                    self.slots.give_back(slot)
                if not self.running and not waiting:
                    waiting = True
                    self.say(f"{len(open_recipes)} left, all with other runners; waiting for them")
                time.sleep(IDLE)
            self._wait()

    def close(self) -> None:
        """Stop what still runs, and give it back."""
        for running in self.running.values():
            running.child.stop()
            self.claims.forget(running.recipe.digest)
            if self.slots and running.slot:
                self.slots.give_back(running.slot)
        self.running.clear()
        self.claims.close()

    def _ended(self, digest: str, records: Mapping[str, Stored] | None = None) -> bool:
        stored = (self.store.records() if records is None else records).get(digest)
        if stored is not None and stored.record.state == "unsupported":  # then; now it is to be run
            return False
        return stored is not None and stored.path.stat().st_mtime_ns != self.again.get(digest)

    def _plan(self, records: Mapping[str, Stored]) -> Plan:
        """Made anew when a record has come or changed: it takes as long as a moment's waiting."""
        if self.planned is None or self.planned[0] != records:
            self.planned = records, current_plan(self.suite, records)
            self._record_refused(self.planned[1], records)
        return self.planned[1]

    def _record_refused(self, plan: Plan, records: Mapping[str, Stored]) -> None:
        """A combination that validation refuses is a finding too, and is written down like one."""
        for row, reason in plan.refused.items():
            recipe = self.suite.example(row)
            if recipe.digest not in records:
                record = Record(state="unsupported", reason=reason, recipe=recipe.to_record())
                self.claims.take(recipe.digest, lambda: False)
                self.claims.commit(recipe.digest, functools.partial(self.store.write, recipe, record, None))

    def _prepare(self) -> None:
        """What all runs need, once, before any is claimed: the libraries, and the data that are read from packages."""
        names, each = gpus.visible(), self.suite.placement.processes
        self.suite.placement.check(len(names))
        if names:
            self.slots = Slots(names, each, self.claims)
            self.jobs = min(self.jobs, len(self.slots))
            lent = "a GPU" if each == 1 else f"{each} GPUs"
            self.say(f"{self.suite.name}: a process a run, {lent} each ({self.jobs} at a time)")
        else:
            self.say(f"{self.suite.name}: importing once, then a process a run ({self.jobs} at a time)")
            workers.import_everything(self.options.threads)
        first = {row.task: row for row in reversed(list(self.suite.rows()))}
        for row in first.values():
            with contextlib.suppress(UserError):  # a run will say it
                self.suite.recipe(row, learning_rate=1.0, seed=0, trial=True).data.read()
        self.prepared = True

    def _start(self, recipe: Recipe, attempt: int, slot: Slot | None) -> None:
        folder = workers.workplace(self.work_folder / "work", recipe.digest, self.claims.owner)
        log = self.work_folder / "logs" / f"{recipe.name}-{recipe.digest}.log"
        once = functools.partial(_run, recipe, folder, self.options.threads)
        work = functools.partial(self.suite.placement.run, once)
        child = workers.start(folder, log, work, None if slot is None else slot.environment)
        self.running[child.pid] = _Running(recipe, child, attempt, slot)

    def _wait(self) -> None:
        """A moment, or until one of the processes ends."""
        now = time.monotonic()
        if now - self.renewed > self.options.lease / 4:
            self.claims.renew()
            self.renewed = now
        for pid, running in list(self.running.items()):
            ended = running.child.ended(self.suite.time_limit)
            if ended is not None:
                del self.running[pid]
                if self.slots and running.slot:
                    self.slots.give_back(running.slot)
                self._end(running, ended)
                return
        time.sleep(POLL)

    def _end(self, running: _Running, ended: Ended) -> None:
        """Turn what the process left into a record, if the run is still this runner's."""
        recipe, folder = running.recipe, running.child.folder
        record, predictions = _left_behind(folder)
        if record is None:
            verdict = workers.classify_exit(ended, running.attempt, self.suite.time_limit)
            if verdict is None:
                self.claims.release(recipe.digest)
                self.say(f"{_label(recipe)}: its process was killed by signal {os.WTERMSIG(ended.status)}; once more")
                shutil.rmtree(folder, ignore_errors=True)
                return
            record = Record(state=verdict[0], reason=verdict[1], recipe=recipe.to_record())
        record = record.model_copy(update={"seconds": ended.seconds, "high_water_bytes": ended.high_water})
        written = self.claims.commit(recipe.digest, lambda: self.store.write(recipe, record, predictions))
        if written and self.options.keep and record.state == "done":
            kept = self.work_folder / "runs" / recipe.name / recipe.digest
            shutil.rmtree(kept, ignore_errors=True)
            kept.parent.mkdir(parents=True, exist_ok=True)
            (folder / "run").rename(kept)
        shutil.rmtree(folder, ignore_errors=True)
        self._say_end(recipe, record, written)

    def _say_end(self, recipe: Recipe, record: Record, written: bool) -> None:
        records = self.store.records()
        plan = self._plan(records)
        clock = EtaEstimator(self.suite, plan, records)
        said = f"{record.state}: {record.reason}"
        if record.result is not None:
            scores = record.result.metrics
            split = "test" if "test" in scores else "validation"
            score = scores[split].get(record.result.selection)
            said = f"{split} {record.result.selection} {'undefined' if score is None else f'{score:.4f}'}"
        if not written:
            said += "; taken over by another runner, thrown away"
        left = clock.left(self.jobs)
        self.say(
            f"{clock.ended}/{clock.total}  {_label(recipe)}: {said}; {duration(record.seconds)}"
            + (f"; about {duration(left)} left" if left else "")
        )


def _label(recipe: Recipe) -> str:
    sort = "" if recipe.score_test else f" rate {recipe.learning_rate:g}"
    return f"{recipe.name}{sort} seed {recipe.seeds.initialization}"


def _run(recipe: Recipe, folder: Path, threads: int) -> None:
    """In the run's own process, or each of them: leave record and predictions in `folder`."""
    workers.import_everything(threads)
    import peftlab.runs.run

    predictions = None
    try:
        peftlab.runs.run.run(recipe, folder / "run")
        if os.environ.get("RANK", "0") != "0":
            return  # the first one tells
        record, predictions = collect(folder / "run")
    except ProcessLostError:
        raise  # another one has the cause
    except Exception as error:  # each way to end is a record: nothing disappears
        traceback.print_exc()
        state, reason = workers.classify_error(error)
        of_what = recipe.to_record()
        record = Record(state=state, reason=reason, recipe=of_what, environment=workers.current_environment(recipe))
    if predictions is not None:
        (folder / "predictions.json").write_text(predictions.model_dump_json(), encoding="utf-8")
    workers.leave(folder, record)
    if record.state != "done":
        raise SystemExit(1)  # others may wait for this one


def _left_behind(folder: Path) -> tuple[Record | None, Predictions | None]:
    record, predictions = folder / workers.RECORD, folder / "predictions.json"
    if not record.exists():
        return None, None
    return (
        Record.model_validate_json(record.read_bytes()),
        Predictions.model_validate_json(predictions.read_bytes()) if predictions.exists() else None,
    )
