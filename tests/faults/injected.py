"""Faults that a forked command injects into itself."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Audit events of the interpreter for the file operations of a save.
OPERATIONS = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove")
_counted = {"operations": 0, "finished": 0}
_gradients: list[Any] = []  # of the current step


def _watch(counting: Callable[[], bool], folder: str, at: int) -> None:
    """Count the file operations below `folder` while `counting`; SIGKILL before the one with this number, from 1."""

    def count() -> None:
        if counting():
            _counted["operations"] += 1
            if _counted["operations"] == at:
                os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        named = event in OPERATIONS and isinstance(arguments[0], str | os.PathLike)
        # rmtree names what it removes by a folder's descriptor and a relative path
        if named and (event != "open" or folder in os.fspath(arguments[0])):
            count()

    sys.addaudithook(hook)
    real = os.fsync  # not reported by the interpreter

    def fsync(descriptor: int) -> None:
        count()
        real(descriptor)

    os.fsync = fsync


def kill_at_operation_of_save(step: int, number: int) -> None:
    """SIGKILL before the `number`th file operation, deletions included, of the save of this step."""
    from peftlab.training.checkpointing import Checkpoints

    real, saving = Checkpoints.save, [False]

    def save(self: Any, snapshot: Any) -> Any:
        saving[0] = snapshot.step == step
        try:
            return real(self, snapshot)
        finally:
            saving[0] = False

    Checkpoints.save = save  # type: ignore[method-assign]
    _watch(lambda: saving[0], ".checkpoints", number)


def count_operations_of_save(step: int, file: str) -> None:
    """Write the number of file operations of the save of this step into `file`."""
    from peftlab.runs import run

    kill_at_operation_of_save(step, -1)
    real = run.publish

    def publish(staged: Path, folder: Path) -> None:
        Path(file).write_text(str(_counted["operations"]))
        real(staged, folder)

    run.publish = publish


def kill_while_publishing(number: int) -> None:
    """SIGKILL before the `number`th file operation after the writing of result.json has begun."""
    from peftlab.runs import run

    real, writing = run.write_result, [False]

    def write_result(*arguments: Any) -> Any:
        writing[0] = True
        return real(*arguments)

    run.write_result = write_result
    _watch(lambda: writing[0], "/tiny/", number)


def kill_at_move(number: int) -> None:
    """SIGKILL before the `number`th renaming or deletion of a folder after result.json has been written."""
    from peftlab.runs import run

    real, seen = run.write_result, [0]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("os.rename", "shutil.rmtree") and Path(os.fspath(arguments[0])).parent.name == "tiny":
            seen[0] += 1
            if seen[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)

    def write_result(*arguments: Any) -> Any:
        written = real(*arguments)
        sys.addaudithook(hook)
        return written

    run.write_result = write_result


def other_version(library: str, version: str) -> None:
    from peftlab.results import environment

    real = environment._version
    environment._version = lambda name: version if name == library else real(name)


def kill_at_step(number: int) -> None:
    """SIGKILL in the middle of the `number`th optimizer step of this process, from 1."""
    signal_at_step(number, signal.SIGKILL)


def signal_at_step(number: int, *signals: int) -> None:
    """Send the signals one after the other in the middle of the `number`th step of this process."""
    _at_step(number, lambda: [os.kill(os.getpid(), sent) for sent in signals])


def hang_at_step(number: int) -> None:
    _at_step(number, lambda: time.sleep(600))


def raise_at_step(number: int, rank: str = "") -> None:
    def fail() -> None:
        if not rank or os.environ.get("RANK") == rank:
            raise RuntimeError("injected")

    _at_step(number, fail)


def _at_step(number: int, action: Callable[[], Any]) -> None:
    """Call `action` after the `number`th computation of a step's gradients, from 1."""
    from peftlab.training.gradients import Gradients

    real, attempts = Gradients.add, [0]

    def add(self: Any, *arguments: Any) -> Any:
        attempts[0] += 1
        _gradients[:] = [self]
        loss = real(self, *arguments)
        if attempts[0] == number:
            action()
        return loss

    Gradients.add = add  # type: ignore[method-assign]


def _count_finished_steps() -> None:
    from peftlab.training.gradients import Gradients

    real = Gradients.add

    def add(self: Any, *arguments: Any) -> Any:
        loss = real(self, *arguments)
        _counted["finished"] += 1
        return loss

    Gradients.add = add  # type: ignore[method-assign]


def signal_at(number: int, sent: int, module: str, name: str) -> None:
    """Send the signal at the `number`th call of a function, e.g. one that loads or saves."""
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


def kill_in_training_after(seconds: float) -> None:
    """SIGALRM from the system's timer this long after training began, wherever the interpreter is."""
    from peftlab.training import loop

    real = loop.train

    def train(*arguments: Any, **keywords: Any) -> Any:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds + 1e-6)
        return real(*arguments, **keywords)

    loop.train = train


def not_a_number_at_step(number: int) -> None:
    """A NaN loss, as bad data or too large a learning rate gives it."""
    from peftlab.training.gradients import Gradients

    real, attempts = Gradients.add, [0]

    def add(self: Any, *arguments: Any) -> Any:
        attempts[0] += 1
        loss = real(self, *arguments)
        return loss * float("nan") if attempts[0] == number else loss

    Gradients.add = add  # type: ignore[method-assign]


def infinite_gradient_at_step(number: int) -> None:
    def spoil() -> None:
        gradient = next(p.grad for p in _gradients[-1].workload.model.parameters() if p.grad is not None)
        gradient.view(-1)[0] = float("inf")

    _at_step(number, spoil)


def infinite_backward_at_step(number: int) -> None:
    """An infinite gradient where gradients are sharded; a step has one backward pass."""
    from peftlab.distributed.deepspeed import ZeroOptimizerStep

    real, attempts = ZeroOptimizerStep.backward, [0]

    def backward(self: Any, loss: Any) -> None:
        attempts[0] += 1
        real(self, loss * float("inf") if attempts[0] == number else loss)

    ZeroOptimizerStep.backward = backward  # type: ignore[method-assign]


def out_of_memory_at_step(number: int, largest: int = 0) -> None:
    """The out-of-memory error of a GPU from that step on, for micro-batches of more than `largest` examples."""
    import torch
    from torch._subclasses import FakeTensor

    from peftlab.tasks.token_classification import TokenClassification

    real = TokenClassification.loss
    _count_finished_steps()

    def loss(self: Any, outputs: Any, batch: Any) -> Any:
        trains = torch.is_grad_enabled() and not isinstance(batch["labels"], FakeTensor)  # those are of an estimate
        if trains and _counted["finished"] + 1 >= number and len(batch["labels"]) > largest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity")
        return real(self, outputs, batch)

    TokenClassification.loss = loss  # type: ignore[method-assign]


def out_of_memory_in_loading() -> None:
    from peftlab.loading import inputs

    def load_base(*arguments: Any, **keywords: Any) -> Any:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
            "you tried to allocate 3221225472 bytes. Error code 12 (Cannot allocate memory)"
        )

    inputs.load_base = load_base


def addresses(megabytes: int) -> None:
    """Set RLIMIT_AS to this many MiB above the address space of the process."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def weights_not_mapped() -> None:
    """The error of torch when RLIMIT_AS leaves no room for a file of weights."""
    import transformers

    def from_pretrained(*arguments: Any, **keywords: Any) -> Any:
        raise RuntimeError("unable to mmap 90868376 bytes from file </model.safetensors>: Cannot allocate memory (12)")

    transformers.AutoModelForTokenClassification.from_pretrained = from_pretrained


def addresses_in_step(number: int, megabytes: int) -> None:
    """Set RLIMIT_AS in this step only."""
    from peftlab.training.gradients import Gradients

    _count_finished_steps()
    real = Gradients.add

    def add(self: Any, *arguments: Any) -> Any:
        if _counted["finished"] + 1 == number:
            addresses(megabytes)
        try:
            return real(self, *arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    Gradients.add = add  # type: ignore[method-assign]


def largest_file_of_run(size: int) -> None:
    """Set RLIMIT_FSIZE when training begins, which fails writes as a full disk does."""
    from peftlab.training import loop

    real = loop.train

    def train(*arguments: Any, **keywords: Any) -> Any:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        # The limit must leave room for the captured output of the command.
        streams = [os.fstat(number).st_size for number in (1, 2)]
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(size, *streams) + 2000, resource.RLIM_INFINITY))
        return real(*arguments, **keywords)

    loop.train = train


def disk_full_at_save(*numbers: int) -> None:
    """Fail the saves with these numbers, from 1, with ENOSPC."""
    import errno

    from peftlab.training import checkpointing

    real, saves = checkpointing._write, [0]

    def write(content: bytes, path: Any) -> None:
        saves[0] += path.name == checkpointing.VALUES
        if path.name == checkpointing.VALUES and saves[0] in numbers:
            with path.open("wb") as file:
                file.write(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(content, path)

    checkpointing._write = write  # type: ignore[assignment]


def fail_with(kind: str, text: str) -> None:
    """An error while the base is loaded, such as the Hub client raises with addresses in its text."""
    from peftlab.errors import UserError
    from peftlab.loading import inputs

    def load_base(*arguments: Any, **keywords: Any) -> Any:
        raise {"RuntimeError": RuntimeError, "UserError": UserError}[kind](text)

    inputs.load_base = load_base


def write_held_bytes(path: str) -> None:
    """After training, write the model's bytes in this process and in all processes together."""
    import json

    from torch.distributed.tensor import DTensor

    from peftlab.training import loop

    real = loop.train

    def train(workload: Any, callbacks: Any) -> Any:
        log = real(workload, callbacks)
        tensors = [parameter.detach() for parameter in workload.model.parameters()]
        held = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        Path(path).write_text(json.dumps([sum(storages.values()), total]))
        return log

    loop.train = train


def write_gradient_buffer(path: str) -> None:
    """Write the number of elements of DeepSpeed's gradient buffer."""
    from peftlab.distributed.deepspeed import ZeroSettings

    real = ZeroSettings.make_optimizer_step

    def make_optimizer_step(zero: ZeroSettings, *arguments: Any, **keywords: Any) -> Any:
        made = real(zero, *arguments, **keywords)
        Path(path).write_text(str(made.engine.optimizer.reduce_bucket_size))
        return made

    setattr(ZeroSettings, "make_optimizer_step", make_optimizer_step)  # noqa: B010
