"""Worker processes of a suite: one per job, forked from a process that has imported everything once."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from peftlab.errors import DivergedError, OutOfMemoryError, UserError
from peftlab.recipe import Recipe
from peftlab.results.run_result import Environment
from peftlab.suites.placement import die_with
from peftlab.suites.store import State

RECORD = "record.json"  # in a worker's folder, written last
TRIES = 3  # attempts at a job whose process is killed from outside


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int
    """Exit status, as `os.wait` returns it."""
    seconds: float
    """Wall-clock seconds from fork to end."""
    peak_rss: int
    """Peak resident bytes, of the largest process if it had several."""
    late: bool
    """Killed at its time limit."""


@dataclass
class Child:
    """A running worker process."""

    pid: int
    folder: Path
    """Its own folder, in which it leaves its record."""
    started: float
    """Time of the fork, by `time.monotonic`."""
    late: bool = False
    """Killed at its time limit."""

    def ended(self, limit: float | None) -> Ended | None:
        """How it ended; None while it runs. It is killed after `limit` seconds."""
        done, status, usage = os.wait4(self.pid, os.WNOHANG)
        seconds = time.monotonic() - self.started
        if done:
            return Ended(status, round(seconds, 3), usage.ru_maxrss * 1024, self.late)
        if limit is not None and seconds > limit and not self.late:
            self.late = True
            os.kill(self.pid, signal.SIGKILL)
        return None

    def stop(self) -> None:
        """Kill it and delete its folder."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        shutil.rmtree(self.folder, ignore_errors=True)


def prepare(threads: int) -> None:
    """Set the environment variables that must be set before torch is imported."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def import_everything(threads: int) -> None:
    """Import what every run imports, and set the number of threads."""
    from peftlab.results.environment import quiet_libraries

    quiet_libraries()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import bitsandbytes  # noqa: F401
    import datasets  # noqa: F401
    import evaluate  # noqa: F401
    import peft  # noqa: F401
    import torch

    import peftlab.runs.run  # noqa: F401

    torch.set_num_threads(threads)


def workplace(work: Path, key: str, owner: str) -> Path:
    """The folder below `work` for a runner's attempt at the job `key`. Folders of earlier attempts are deleted.

    A runner that was slow, not dead, loses its attempt, whose record would be refused anyway.
    """
    for abandoned in work.glob(f"{key}-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    return work / f"{key}-{owner}"


def start(folder: Path, log: Path, work: Callable[[], object], environment: Mapping[str, str] | None = None) -> Child:
    """Call `work` in a forked process with an empty `folder` for its record; its output goes to `log`.

    `environment` is added to its environment variables.
    """
    folder.mkdir(parents=True)
    log.parent.mkdir(exist_ok=True)
    sys.stdout.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            init_worker(parent, log)
            os.environ.update(environment or {})
            work()
            sys.stdout.flush()
            sys.stderr.flush()
            code = 0
        finally:
            os._exit(code)
    return Child(pid, folder, time.monotonic())


def run_in_subprocess(work: Callable[[], object]) -> None:
    """Call `work` in a forked process, so that its imports do not stay in this one. Raises the UserError it raises."""
    sys.stdout.flush()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except UserError as error:
            os.write(writing, str(error).encode())
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        message = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    if message:
        raise UserError(message)
    if status:
        raise RuntimeError(f"a forked process ended with status {status}")


def init_worker(parent: int, log: Path) -> None:
    """Set up a forked process: it dies with the runner, leaves Ctrl-C to it, and writes its output to `log`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with(parent)
    out = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    empty = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((empty, 0), (out, 1), (out, 2)):
        os.dup2(source, target)


def leave(folder: Path, record: BaseModel) -> None:
    """Write the record atomically, as the last file. Of several processes the first one's is kept: it has the cause."""
    staged = folder / f"{RECORD}.{os.getpid()}.part"
    staged.write_text(record.model_dump_json(), encoding="utf-8")
    if not (folder / RECORD).exists():
        staged.rename(folder / RECORD)


def classify_error(error: Exception) -> tuple[State, str]:
    """The state that an exception leads to, and the reason in one line."""
    from peftlab.training import out_of_memory

    first = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    if isinstance(error, DivergedError):
        return "diverged", first
    if isinstance(error, OutOfMemoryError) or out_of_memory.is_out_of_memory(error):
        return "out of memory", first
    return "failed", first if isinstance(error, UserError) else f"{type(error).__name__}: {first}"


def classify_exit(ended: Ended, attempt: int, limit: float | None) -> tuple[State, str] | None:
    """The state and reason of a process that left no record; None if the job is to be retried."""
    if ended.late:
        return "timed out", f"not done after {limit:g} s"
    if not os.WIFSIGNALED(ended.status):
        code = os.waitstatus_to_exitcode(ended.status)
        return "failed", f"its process ended with exit code {code} and left no record"
    number = os.WTERMSIG(ended.status)
    if attempt < TRIES:
        return None
    if number == signal.SIGKILL:
        return "out of memory", f"killed by the system in {attempt} attempts, probably for lack of memory"
    return "failed", f"killed by signal {number} in {attempt} attempts"


def current_environment(recipe: Recipe) -> Environment:
    """Code, libraries and hardware of this process."""
    import torch

    from peftlab.results.environment import environment
    from peftlab.training.precision import resolve_precision

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return environment(device.type, resolve_precision(recipe.training.precision, device), 1)
