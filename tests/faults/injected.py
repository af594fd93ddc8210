"""Faults that a forked command gives itself."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from typing import Any

# What the interpreter reports of the file operations that a save is made of.
OPERATIONS = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree")
_counted = {"operations": 0, "steps": 0}


def kill_at_operation(number: int, folder: str, word: str = "") -> None:
    """SIGKILL before the `number`th file operation below `folder` (whose path has `word` in it), from 1."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in OPERATIONS or not arguments:
            return
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else ""
        if event == "open" and not path:
            return
        if folder in path and word in path:
            _counted["operations"] += 1
            if _counted["operations"] == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    _before_every(("fsync",), folder, number)


def count_operations(folder: str, file: str, word: str = "") -> None:
    """Write into `file` how many operations there were; `kill_at_operation` would count the same ones."""
    import atexit

    kill_at_operation(-1, folder, word)
    exit_now = os._exit

    def leave(code: int) -> None:
        with open(file, "w") as out:
            out.write(str(_counted["operations"]))
        exit_now(code)

    atexit.register(lambda: None)
    os._exit = leave  # type: ignore[assignment]


def _before_every(names: tuple[str, ...], folder: str, number: int) -> None:
    """fsync is not reported: it is replaced by itself with a count."""
    for name in names:
        real = getattr(os, name)

        def counted(*arguments: Any, real: Any = real) -> Any:
            _counted["operations"] += 1
            if _counted["operations"] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)

        setattr(os, name, counted)


def kill_at_step(number: int) -> None:
    """SIGKILL in the middle of the optimiser's `number`th step of this process, from 1."""
    signal_at_step(number, signal.SIGKILL)


def signal_at_step(number: int, *signals: int) -> None:
    """The signals one after the other, in the middle of the `number`th step of this process."""
    _at_step(number, lambda: [os.kill(os.getpid(), sent) for sent in signals])


def hang_at_step(number: int) -> None:
    _at_step(number, lambda: time.sleep(600))


def raise_at_step(number: int, rank: str = "") -> None:
    def fail() -> None:
        if not rank or os.environ.get("RANK") == rank:
            raise RuntimeError("injected")

    _at_step(number, fail)


def _at_step(number: int, action: Any) -> None:
    from peftlab.gradients import Gradients

    real = Gradients.add

    def add(self: Any, *arguments: Any) -> Any:
        _counted["steps"] += 1
        loss = real(self, *arguments)
        if _counted["steps"] == number:
            action()
        return loss

    Gradients.add = add  # type: ignore[method-assign]


def signal_at(number: int, sent: int, module: str, name: str) -> None:
    """The signal at the `number`th call of a function that the command makes, e.g. in loading or saving."""
    import importlib

    owner: Any = importlib.import_module(module)
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    real, calls = getattr(owner, last), [0]

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            os.kill(os.getpid(), sent)
        return real(*arguments, **keywords)

    setattr(owner, last, wrapped)


def kill_after(seconds: float) -> None:
    """Killed by the system's clock, whatever the interpreter is at."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def not_a_number_at_step(number: int) -> None:
    """A batch whose loss is NaN, as bad data or too large a rate make it."""
    from peftlab.gradients import Gradients

    real = Gradients.add

    def add(self: Any, *arguments: Any) -> Any:
        _counted["steps"] += 1
        loss = real(self, *arguments)
        return loss * float("nan") if _counted["steps"] == number else loss

    Gradients.add = add  # type: ignore[method-assign]


def out_of_memory_at_step(number: int, largest: int = 0) -> None:
    """As a GPU says it, in the middle of the step, for micro-batches of more than `largest` examples."""
    import torch

    from peftlab.tasks.token_classification import TokenClassification

    real, seen = TokenClassification.loss, [0]

    def loss(self: Any, outputs: Any, batch: Any) -> Any:
        seen[0] += 1
        if seen[0] >= number and len(batch["labels"]) > largest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity")
        return real(self, outputs, batch)

    TokenClassification.loss = loss  # type: ignore[method-assign]


def addresses(megabytes: int) -> None:
    """RLIMIT_AS so many MiB above what the process has now."""
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def largest_file(size: int) -> None:
    """RLIMIT_FSIZE: what a full disk is to whoever writes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def disk_full_at_save(*numbers: int) -> None:
    """No space left in the checkpoints with these numbers, from 1."""
    import errno

    from peftlab import checkpoint

    real, saves = checkpoint._write, [0]

    def write(content: bytes, path: Any) -> None:
        saves[0] += path.name == checkpoint.VALUES
        if path.name == checkpoint.VALUES and saves[0] in numbers:
            with path.open("wb") as file:
                file.write(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(content, path)

    checkpoint._write = write  # type: ignore[assignment]
