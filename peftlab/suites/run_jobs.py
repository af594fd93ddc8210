"""The runs of a suite as jobs: each trains and evaluates one recipe."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from peftlab.errors import ProcessLostError, UserError
from peftlab.recipe import Recipe
from peftlab.suites import gpus, workers
from peftlab.suites.claims import Claims
from peftlab.suites.collect import collect
from peftlab.suites.eta import EtaEstimator, duration
from peftlab.suites.gpus import Slots, gpu_slots
from peftlab.suites.matching import matched_suite
from peftlab.suites.scheduler import Jobs, Options, Say, run_jobs
from peftlab.suites.store import Predictions, Record, State, Stored
from peftlab.suites.workers import Ended

PREDICTIONS = "predictions.json"


def bench(folder: Path, options: Options, say: Say = print) -> None:
    """Run all of a suite that has no result and that no other runner has claimed; return when every run has ended."""
    run_jobs(RunJobs(folder, matched_suite(folder), options), options, say)


class RunJobs(Jobs[Record]):
    """Trials and cells of a suite."""

    @property
    def folder(self) -> Path:
        return self.runs.folder

    def key(self, recipe: Recipe) -> str:
        return recipe.digest

    def recipes(self) -> list[Recipe]:
        return self.plan().recipes

    def records(self) -> Mapping[str, Stored]:
        return self.runs.records()

    def unsupported(self) -> Iterator[tuple[Recipe, Record]]:
        for row, reason in self.plan().refused.items():
            recipe = self.suite.example(row)
            yield recipe, Record(state="unsupported", reason=reason, recipe=recipe.model_dump(mode="json"))

    def slots(self, claims: Claims) -> Slots | None:
        names = gpus.visible()
        self.suite.placement.check(len(names))
        return Slots(gpu_slots(names, self.suite.placement.processes), claims) if names else None

    def prepare(self, processes: int, say: Say) -> None:
        name, each = self.suite.name, self.suite.placement.processes
        if gpus.visible():
            count = "a GPU" if each == 1 else f"{each} GPUs"
            say(f"{name}: one process per run with {count} each ({processes} at a time)")
        else:
            say(f"{name}: importing once, then one process per run ({processes} at a time)")
            workers.import_everything(self.options.threads)
        first = {row.task: row for row in reversed(list(self.suite.rows()))}
        for row in first.values():
            with contextlib.suppress(UserError):  # the record of a run will have it
                self.suite.recipe(row, learning_rate=1.0, seed=0, trial=True).data.read()

    def waiting(self, count: int) -> str:
        return f"{count} left, all claimed by other runners; waiting for them"

    def label(self, recipe: Recipe) -> str:
        rate = "" if recipe.score_test else f" rate {recipe.learning_rate:g}"
        return f"{recipe.name}{rate} seed {recipe.seeds.initialization}"

    def work(self, recipe: Recipe, folder: Path) -> Callable[[], object]:
        run_once = functools.partial(_run, recipe, folder, self.options.threads)
        return functools.partial(self.suite.placement.run, run_once)

    def read(self, folder: Path) -> Record | None:
        path = folder / workers.RECORD
        return Record.model_validate_json(path.read_bytes()) if path.exists() else None

    def failure(self, recipe: Recipe, state: State, reason: str) -> Record:
        return Record(state=state, reason=reason, recipe=recipe.model_dump(mode="json"))

    def with_usage(self, record: Record, ended: Ended) -> Record:
        return record.model_copy(update={"seconds": ended.seconds, "peak_rss_bytes": ended.peak_rss})

    def write(self, recipe: Recipe, record: Record, folder: Path) -> None:
        path = folder / PREDICTIONS
        predictions = Predictions.model_validate_json(path.read_bytes()) if path.exists() else None
        self.runs.write(recipe, record, predictions)

    def keep(self, recipe: Recipe, record: Record, folder: Path) -> None:
        if self.options.keep and record.state == "done":
            target = self.work_folder / "runs" / recipe.name / recipe.digest
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            (folder / "run").rename(target)

    def progress(self, recipe: Recipe, record: Record, *, superseded: bool, processes: int) -> str:
        eta = EtaEstimator(self.suite, self.plan(), self.runs.records())
        text = f"{record.state}: {record.reason}"
        if record.result is not None:
            scores = record.result.metrics
            split = "test" if "test" in scores else "validation"
            score = scores[split].get(record.result.selection)
            text = f"{split} {record.result.selection} {'undefined' if score is None else f'{score:.4f}'}"
        if superseded:
            text += "; superseded by another runner, discarded"
        left = eta.left(processes)
        return f"{eta.ended}/{eta.total}  {self.label(recipe)}: {text}; {duration(record.seconds)}" + (
            f"; about {duration(left)} left" if left else ""
        )


def _run(recipe: Recipe, folder: Path, threads: int) -> None:
    """In each process of a run: train and evaluate; the first process leaves record and predictions in `folder`."""
    workers.import_everything(threads)
    import peftlab.runs.run  # late: on a machine with GPUs nothing may be imported before the fork

    predictions = None
    try:
        peftlab.runs.run.run(recipe, folder / "run")
        if os.environ.get("RANK", "0") != "0":
            return
        record, predictions = collect(folder / "run")
    except ProcessLostError:
        raise  # the process that was lost has the cause
    except Exception as error:  # every way to end is a record
        traceback.print_exc()
        state, reason = workers.classify_error(error)
        values = recipe.model_dump(mode="json")
        record = Record(state=state, reason=reason, recipe=values, environment=workers.current_environment(recipe))
    if predictions is not None:
        (folder / PREDICTIONS).write_text(predictions.model_dump_json(), encoding="utf-8")
    workers.leave(folder, record)
    if record.state != "done":
        raise SystemExit(1)  # other processes of the run may wait for this one
