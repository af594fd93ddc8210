"""A process for each piece of a suite's work, forked from one that has imported everything once."""

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

RECORD = "record.json"  # what a process leaves in its folder, when all else is there
TRIES = 3  # of work whose process is killed from outside


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int  # as wait gives it
    seconds: float  # wall, from fork to end
    high_water: int  # resident bytes; of several processes, of the one that had most
    late: bool  # killed for its time limit


@dataclass
class Child:
    """A process at work."""

    pid: int
    folder: Path  # its own
    started: float  # monotonic
    late: bool = False

    def ended(self, limit: float | None) -> Ended | None:
        """None as long as it runs; beyond `limit` seconds it is killed."""
        done, status, usage = os.wait4(self.pid, os.WNOHANG)
        seconds = time.monotonic() - self.started
        if done:
            return Ended(status, round(seconds, 3), usage.ru_maxrss * 1024, self.late)
        if limit is not None and seconds > limit and not self.late:
            self.late = True
            os.kill(self.pid, signal.SIGKILL)
        return None

    def stop(self) -> None:
        """Kill it, and leave nothing of it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        shutil.rmtree(self.folder, ignore_errors=True)


def prepare(threads: int) -> None:
    """Set what must be set before torch is imported."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def import_everything(threads: int) -> None:
    """What every run imports, and how many threads it may use."""
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
    """In the folder `work` a runner's own for the work called `key`; what a dead one left of the same is deleted.

    One that was only thought dead loses its attempt by it, which nobody would take any more.
    """
    for left in work.glob(f"{key}-*"):
        shutil.rmtree(left, ignore_errors=True)
    return work / f"{key}-{owner}"


def start(folder: Path, log: Path, work: Callable[[], object], environment: Mapping[str, str] | None = None) -> Child:
    """Do `work` in a process of its own, with an empty `folder` for what it leaves; what it prints is in `log`.

    `environment` has further variables of it.
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
    """Do `work` in a process of its own, so that nothing it imports stays here. Raises the UserError it raises."""
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
        said = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    if said:
        raise UserError(said)
    if status:
        raise RuntimeError(f"a process of its own ended with {status}")


def init_worker(parent: int, log: Path) -> None:
    """Die with the runner, leave the keyboard to it, and write to the log."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with(parent)
    out = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (out, 1), (out, 2)):
        os.dup2(source, target)


def leave(folder: Path, record: BaseModel) -> None:
    """Write the record, last of all: whole or not at all. Of several processes' the first is kept: it has the cause."""
    staged = folder / f"{RECORD}.{os.getpid()}.part"
    staged.write_text(record.model_dump_json(), encoding="utf-8")
    if not (folder / RECORD).exists():
        staged.rename(folder / RECORD)


def classify_error(error: Exception) -> tuple[State, str]:
    """What an exception means for the table, and why in one line."""
    from peftlab.training import out_of_memory

    first = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    if isinstance(error, DivergedError):
        return "diverged", first
    if isinstance(error, OutOfMemoryError) or out_of_memory.is_out_of_memory(error):
        return "out of memory", first
    return "failed", first if isinstance(error, UserError) else f"{type(error).__name__}: {first}"


def classify_exit(ended: Ended, attempt: int, limit: float | None) -> tuple[State, str] | None:
    """What a process that left nothing died of; None if it is to be tried once more."""
    if ended.late:
        return "timed out", f"not done after {limit:g} s"
    if not os.WIFSIGNALED(ended.status):
        code = os.waitstatus_to_exitcode(ended.status)
        return "failed", f"its process ended with exit code {code} and left nothing"
    number = os.WTERMSIG(ended.status)
    if attempt < TRIES:
        return None
    if number == signal.SIGKILL:
        return "out of memory", f"killed {attempt} times from outside, as a system short of memory does"
    return "failed", f"killed by signal {number} in {attempt} attempts"


def current_environment(recipe: Recipe) -> Environment:
    """What this process runs on."""
    import torch

    from peftlab.results.environment import environment
    from peftlab.training.precision import resolve_precision

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return environment(device.type, resolve_precision(recipe.training.precision, device), 1)
