"""Console output of a run: a progress bar in a terminal, plain lines in a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from peftlab.io.redact import redact
from peftlab.results.run_result import RunResult
from peftlab.results.summary import summary
from peftlab.training.callbacks import Callback
from peftlab.training.state import TrainState
from peftlab.training.train_log import Evaluation, MicroBatchReduction, Step, TrainLog

EARLY = 2  # evaluations
PLAIN_EVERY = 20.0  # seconds between two step lines in a pipe


def show_check(name: str, ok: bool | None, detail: str, cure: str) -> None:
    """Print a line of the doctor's list, and the cure below it."""
    mark = {True: "[green]good[/green]", False: "[red]BAD[/red] ", None: "[dim]-[/dim]   "}[ok]
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{mark}  [bold]{name:<28}[/bold]{escape(detail)}")
    if cure:
        console.print(f"{'':<6}[yellow]{escape(cure)}[/yellow]")


class ConsoleReporter(Callback):
    """Reports a run on the console. `silent` on all processes but the main one."""

    def __init__(self, *, silent: bool = False) -> None:
        self._console = Console(quiet=silent, highlight=False, soft_wrap=True)
        self._live = self._console.is_terminal and not silent
        self._progress = Progress(
            TextColumn("training {task.percentage:.0f}%"),
            BarColumn(bar_width=10),  # the line fits 80 columns
            MofNCompleteColumn(),
            TextColumn("epoch {task.fields[epoch]}  loss {task.fields[loss]}  {task.fields[rate]} tok/s"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._last_line = time.monotonic()
        self._loss: float | None = None  # moving average
        self._selection = ""  # metric that chooses the best state
        self._method = ""
        self._rank: Callable[[Mapping[str, float]], float] | None = None  # of scores, higher is better
        self._evaluations = 0
        self._learned = False  # an evaluation was better than the baseline
        self.baseline: Mapping[str, float] = {}
        """Scores of the constant baseline on the validation split."""

    def __enter__(self) -> ConsoleReporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove_bar()

    def line(self, label: str, text: str) -> None:
        """Print `label      text`, labels in a column of their own."""
        self._console.print(Text(f"{label:<11}", style="bold"), escape(redact(text)), sep="")

    def on_train_begin(self, state: TrainState) -> None:
        self._selection = state.workload.task.selection
        self._method = state.workload.method.kind
        self._rank = state.workload.task.rank

    def on_step_end(self, step: Step, total: int, log: TrainLog) -> None:
        self._loss = step.loss if self._loss is None else 0.95 * self._loss + 0.05 * step.loss
        epoch = f"{step.epoch:.1f}"
        loss, rate = f"{self._loss:.4f}", f"{log.tokens / max(log.seconds, 1e-9):,.0f}"
        if self._live:
            if self._task is None:
                self._progress.start()
                self._task = self._progress.add_task("training", total=total, loss=loss, rate=rate, epoch=epoch)
            self._progress.update(self._task, completed=step.number, loss=loss, rate=rate, epoch=epoch)
        elif time.monotonic() - self._last_line > PLAIN_EVERY:
            self._last_line = time.monotonic()
            left = log.seconds / step.number * (total - step.number)
            self._console.print(
                f"step {step.number}/{total}  epoch {step.epoch:.2f}  loss {loss}  {rate} tokens/s  {left:.0f} s left"
            )

    def on_evaluation(self, evaluation: Evaluation, is_best: bool) -> None:
        score = evaluation.scores[self._selection]
        loss = "" if evaluation.validation_loss is None else f"loss {evaluation.validation_loss:.4f}  "
        remark = f"  (best {self._selection})" if is_best else ""
        if not evaluation.selectable:
            remark = f"  (cannot be the best: {self._method} has not reached its final size)"
        self.line(
            "validation",
            f"step {evaluation.step}  epoch {evaluation.epoch:.2f}  train loss {evaluation.loss:.4f}  "
            f"{loss}{self._selection} {score:.4f}{remark}",
        )
        self._warn_of_no_gain(evaluation)

    def _warn_of_no_gain(self, evaluation: Evaluation) -> None:
        """After `EARLY` evaluations, say if none of them was better than the baseline."""
        if self._rank is None or self._selection not in self.baseline:
            return
        self._evaluations += 1
        self._learned |= self._rank(evaluation.scores) > self._rank(self.baseline)
        if self._evaluations == EARLY and not self._learned:
            self.line(
                "no gain",
                f"none of {EARLY} evaluations is better than the baseline ({self._selection} "
                f"{self.baseline[self._selection]:.4f}, without a model): try a higher training.learning_rate",
            )

    def on_micro_batch_reduction(self, reduction: MicroBatchReduction) -> None:
        self.line(
            "memory", f"out of memory at step {reduction.step}: retrying with accumulation {reduction.accumulation}"
        )

    def on_train_end(self, log: TrainLog) -> None:
        self._remove_bar()

    def _remove_bar(self) -> None:
        if self._task is not None:
            self._progress.stop()
            self._task = None

    def summary(self, result: RunResult, folder: Path, baseline_rule: str) -> None:
        """Print the final lines."""
        self._remove_bar()
        for label, text in summary(result, baseline_rule):
            self.line(label, text)
        self.line("saved", str(folder))
        self.line("next", f'peftlab predict {folder} "a text"')
