"""Running a suite: whatever has no result, a process a run, forked from one that has imported everything once."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from peftlab.claims import Claims
from peftlab.estimate import Clock, duration
from peftlab.harvest import finished_runs, harvest
from peftlab.part import BadInput, Diverged, OutOfMemory
from peftlab.recipe import Recipe
from peftlab.results import Environment
from peftlab.store import AGAIN, Predictions, Record, State, Store, Stored, validation_scores
from peftlab.suite import Plan, Suite, load_suite, make_plan

WORK = ".bench"  # in the suite's folder, not committed: claims, logs, runs at work
LEASE = 60.0  # seconds without a sign of life after which a runner's claims are anybody's
TRIES = 3  # of a run whose process is killed from outside
POLL = 0.2  # seconds

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
    suite = load_suite(folder)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before torch is imported
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    runner = _Runner(folder, suite, options, say)
    try:
        return runner.work()
    finally:
        runner.close()


def adopt(folder: Path, runs: Path, say: Say = print) -> int:
    """Bring in finished runs that are this suite's, from anywhere below `runs`; return how many."""
    suite, store = load_suite(folder), Store(folder)
    if not runs.is_dir():
        raise BadInput(f"--adopt {runs}: no such folder")
    found = finished_runs(runs)
    adopted = 0
    while True:  # a trial more may tell the learning rate of further cells
        records = store.records()
        plan = make_plan(suite, validation_scores(records))
        new = [recipe for recipe in plan.recipes if recipe.digest in found and recipe.digest not in records]
        if not new:
            say(f"{adopted} adopted; {len(found.keys() - records.keys())} others below {runs} are none of this suite's")
            return adopted
        for recipe in new:
            record, predictions = harvest(found[recipe.digest][0])
            say(f"adopted {store.write(recipe, record, predictions).name}")
            adopted += 1


def current_plan(suite: Suite, records: Mapping[str, Stored]) -> Plan:
    return make_plan(suite, validation_scores(records))


@dataclass
class _Running:
    recipe: Recipe
    folder: Path
    started: float  # monotonic
    attempt: int
    late: bool = False  # killed for its time limit


class _Runner:
    def __init__(self, folder: Path, suite: Suite, options: Options, say: Say) -> None:
        self.suite, self.options, self.say = suite, options, say
        self.store = Store(folder)
        self.work_folder = folder / WORK if folder.is_dir() else folder.parent / WORK
        self.claims = Claims(self.work_folder / "claims.sqlite", options.lease)
        self.running: dict[int, _Running] = {}
        self.again = {  # by digest: when the record was written that is to be replaced
            digest: stored.path.stat().st_mtime_ns
            for digest, stored in self.store.records().items()
            if options.retry and stored.record.state in AGAIN
        }
        self.renewed = 0.0
        self.imported = False

    def work(self) -> Plan:
        waiting = False
        while True:
            records = self.store.records()
            plan = current_plan(self.suite, records)
            self._record_refused(plan, records)
            open_recipes = [recipe for recipe in plan.recipes if not self._ended(recipe.digest, records)]
            here = {running.recipe.digest for running in self.running.values()}
            if len(self.running) < self.options.jobs:
                for recipe in open_recipes:
                    if recipe.digest in here:
                        continue
                    attempt = self.claims.take(recipe.digest, functools.partial(self._ended, recipe.digest))
                    if attempt is not None:
                        self._start(recipe, attempt)
                        waiting = False
                        break
                else:
                    if not open_recipes:
                        return plan
                    if not self.running and not waiting:
                        waiting = True
                        self.say(f"{len(open_recipes)} left, all with other runners; waiting for them")
            self._wait(plan)

    def close(self) -> None:
        """Stop what still runs, and give it back."""
        for pid, running in self.running.items():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self.claims.forget(running.recipe.digest)
            shutil.rmtree(running.folder, ignore_errors=True)
        self.running.clear()
        self.claims.close()

    def _ended(self, digest: str, records: Mapping[str, Stored] | None = None) -> bool:
        stored = (self.store.records() if records is None else records).get(digest)
        return stored is not None and stored.path.stat().st_mtime_ns != self.again.get(digest)

    def _record_refused(self, plan: Plan, records: Mapping[str, Stored]) -> None:
        """A combination that validation refuses is a finding too, and is written down like one."""
        for row, reason in plan.refused.items():
            recipe = self.suite.recipe(row, learning_rate=self.suite.centre(row), seed=self.suite.seeds[0], trial=False)
            if recipe.digest not in records:
                record = Record(state="unsupported", reason=reason, recipe=recipe.model_dump(mode="json"))
                self.claims.take(recipe.digest, lambda: False)
                self.claims.commit(recipe.digest, functools.partial(self.store.write, recipe, record, None))

    def _start(self, recipe: Recipe, attempt: int) -> None:
        if not self.imported:
            self.say(f"{self.suite.name}: importing once, then a process a run ({self.options.jobs} at a time)")
            import_everything(self.options.threads)
            self.imported = True
        # Named by the owner too: a runner that is thought dead may still be writing.
        folder = self.work_folder / "work" / f"{recipe.digest}-{self.claims.owner}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        log = self.work_folder / "logs" / f"{recipe.name}-{recipe.digest}.log"
        log.parent.mkdir(exist_ok=True)
        sys.stdout.flush()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _become_child(parent, log)
                code = _run(recipe, folder)
            finally:
                os._exit(code)
        self.running[pid] = _Running(recipe, folder, time.monotonic(), attempt)

    def _wait(self, plan: Plan) -> None:
        """A moment, or until one of the processes ends."""
        now = time.monotonic()
        if now - self.renewed > self.options.lease / 4:
            self.claims.renew()
            self.renewed = now
        for pid, running in list(self.running.items()):
            done, status, usage = os.wait4(pid, os.WNOHANG)
            if done:
                del self.running[pid]
                self._end(running, status, usage.ru_maxrss * 1024)
                return
            limit = self.suite.time_limit
            if limit is not None and now - running.started > limit and not running.late:
                running.late = True
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL)

    def _end(self, running: _Running, status: int, high_water: int) -> None:
        """Turn what the process left into a record, if the run is still this runner's."""
        recipe, seconds = running.recipe, round(time.monotonic() - running.started, 3)
        record, predictions = _left_behind(running.folder)
        if record is None:
            verdict = self._verdict(running, status)
            if verdict is None:
                self.claims.release(recipe.digest)
                self.say(f"{_label(recipe)}: its process was killed by signal {os.WTERMSIG(status)}; once more")
                shutil.rmtree(running.folder, ignore_errors=True)
                return
            record = Record(state=verdict[0], reason=verdict[1], recipe=recipe.model_dump(mode="json"))
        record = record.model_copy(update={"seconds": seconds, "high_water_bytes": high_water})
        written = self.claims.commit(recipe.digest, lambda: self.store.write(recipe, record, predictions))
        if written and self.options.keep and record.state == "done":
            kept = self.work_folder / "runs" / recipe.name / recipe.digest
            shutil.rmtree(kept, ignore_errors=True)
            kept.parent.mkdir(parents=True, exist_ok=True)
            (running.folder / "run").rename(kept)
        shutil.rmtree(running.folder, ignore_errors=True)
        self._say_end(recipe, record, written)

    def _verdict(self, running: _Running, status: int) -> tuple[State, str] | None:
        """What a process that left nothing died of; None if it is to be tried once more."""
        if running.late:
            return "timed out", f"not done after {self.suite.time_limit:g} s"
        if not os.WIFSIGNALED(status):
            return "failed", f"its process ended with exit code {os.waitstatus_to_exitcode(status)} and left nothing"
        number = os.WTERMSIG(status)
        if running.attempt < TRIES:
            return None
        if number == signal.SIGKILL:
            return "out of memory", f"killed {running.attempt} times from outside, as a system short of memory does"
        return "failed", f"killed by signal {number} in {running.attempt} attempts"

    def _say_end(self, recipe: Recipe, record: Record, written: bool) -> None:
        records = self.store.records()
        plan = current_plan(self.suite, records)
        clock = Clock(self.suite, plan, records)
        said = f"{record.state}: {record.reason}"
        if record.result is not None:
            scores = record.result.metrics
            split = "test" if "test" in scores else "validation"
            said = f"{split} {record.result.selection} {scores[split][record.result.selection]:.4f}"
        if not written:
            said += "; taken over by another runner, thrown away"
        left = clock.left(self.options.jobs)
        self.say(
            f"{clock.ended}/{clock.total}  {_label(recipe)}: {said}; {duration(record.seconds)}"
            + (f"; about {duration(left)} left" if left else "")
        )


def _label(recipe: Recipe) -> str:
    sort = "" if recipe.score_test else f" rate {recipe.learning_rate:g}"
    return f"{recipe.name}{sort} seed {recipe.seeds.initialization}"


def import_everything(threads: int) -> None:
    """What every run imports, and how many threads it may use."""
    from peftlab.environment import quiet_libraries

    quiet_libraries()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import bitsandbytes  # noqa: F401
    import datasets  # noqa: F401
    import evaluate  # noqa: F401
    import peft  # noqa: F401
    import torch

    import peftlab.run  # noqa: F401

    torch.set_num_threads(threads)


def _become_child(parent: int, log: Path) -> None:
    """Die with the runner, leave the keyboard to it, and write to the log."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)
    out = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (out, 1), (out, 2)):
        os.dup2(source, target)


def _run(recipe: Recipe, folder: Path) -> int:
    """In the run's own process: leave record and predictions in `folder`."""
    import peftlab.run

    predictions = None
    try:
        peftlab.run.run(recipe, folder / "run")
        record, predictions = harvest(folder / "run")
    except Exception as error:  # each way to end is a record: nothing disappears
        traceback.print_exc()
        state, reason = _ending(error)
        record = Record(state=state, reason=reason, recipe=recipe.model_dump(mode="json"), environment=_here(recipe))
    if predictions is not None:
        (folder / "predictions.json").write_text(predictions.model_dump_json(), encoding="utf-8")
    (folder / "record.part").write_text(record.model_dump_json(), encoding="utf-8")
    (folder / "record.part").rename(folder / "record.json")
    sys.stdout.flush()
    sys.stderr.flush()
    return 0


def _ending(error: Exception) -> tuple[State, str]:
    """What an exception means for the table, and why in one line."""
    import torch

    first = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    if isinstance(error, Diverged):
        return "diverged", first
    if isinstance(error, OutOfMemory | MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
        return "out of memory", first
    return "failed", first if isinstance(error, BadInput) else f"{type(error).__name__}: {first}"


def _here(recipe: Recipe) -> Environment:
    import torch

    from peftlab.base import resolve_precision
    from peftlab.environment import environment

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return environment(device.type, resolve_precision(recipe.training.precision, device), 1)


def _left_behind(folder: Path) -> tuple[Record | None, Predictions | None]:
    record, predictions = folder / "record.json", folder / "predictions.json"
    if not record.exists():
        return None, None
    return (
        Record.model_validate_json(record.read_bytes()),
        Predictions.model_validate_json(predictions.read_bytes()) if predictions.exists() else None,
    )
