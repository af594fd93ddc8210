"""Where the bytes are: what a model's tensors hold at rest, and what comes and goes while it trains."""

from __future__ import annotations

import resource
import sys
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import torch
from bitsandbytes.autograd._functions import MatmulLtState
from bitsandbytes.functional import QuantState
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from peftlab.distributed.fsdp import to_local
from peftlab.loading.model import within
from peftlab.profiling.profile import PhaseSnapshot

MARK = "peftlab mark: "


class Recorder(Protocol):
    """Follows the bytes of a device between its beginning and its end."""

    def __enter__(self) -> Recorder: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def mark(self, phase: str) -> None: ...
    def marks(self) -> list[PhaseSnapshot]:
        """After the end, in order."""

    @property
    def reserved(self) -> int | None:
        """The most that the allocator took from the device."""


class HostRecorder:
    """The CPU: every allocation and release, in order of time, from the profiler. The same bytes in every run."""

    reserved = None

    def __init__(self) -> None:
        self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)

    def __enter__(self) -> HostRecorder:
        self._profile.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._profile.__exit__(kind, error, trace)

    def mark(self, phase: str) -> None:
        with torch.profiler.record_function(f"{MARK}{phase}"):
            pass

    def marks(self) -> list[PhaseSnapshot]:
        profiler: Any = self._profile.profiler
        found: list[tuple[int, int, str]] = []  # time, bytes, phase
        pending = list(profiler.kineto_results.experimental_event_tree())
        while pending:
            event = pending.pop()
            pending += event.children
            kind, details = event.typed
            if kind.name == "Allocation" and details.device.type == "cpu":
                found.append((event.start_time_ns, details.alloc_size, ""))
            elif event.name.startswith(MARK):
                found.append((event.start_time_ns, 0, event.name.removeprefix(MARK)))
        return add_up((size, phase) for _, size, phase in sorted(found, key=lambda event: event[0]))


class DeviceRecorder:
    """A GPU: the allocator's own statistics, read and reset at each mark."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = 0
        self._marks: list[PhaseSnapshot] = []
        self.reserved: int | None = None

    def __enter__(self) -> DeviceRecorder:
        _start_matrix_products(self._device)
        torch.cuda.synchronize(self._device)
        self._start = self._asked("current")
        self.reserved = torch.cuda.memory_reserved(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._most_reserved()

    def mark(self, phase: str) -> None:
        # Memory is given and taken when work is queued, not when it is done: nothing has to wait here.
        live, peak = self._asked("current") - self._start, self._asked("peak") - self._start
        self._marks.append(PhaseSnapshot(phase, live, peak))
        self._most_reserved()
        torch.cuda.reset_peak_memory_stats(self._device)

    def marks(self) -> list[PhaseSnapshot]:
        return list(self._marks)

    def _asked(self, figure: str) -> int:
        """Bytes that tensors asked for: what the allocator gives them is rounded up to 512."""
        return int(torch.cuda.memory_stats(self._device)[f"requested_bytes.all.{figure}"])

    def _most_reserved(self) -> None:
        self.reserved = max(self.reserved or 0, torch.cuda.max_memory_reserved(self._device))


def _start_matrix_products(device: torch.device) -> None:
    """Have cuBLAS take its workspaces, for both passes, before anything is measured."""
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.ones(64, 64, device=device, dtype=dtype, requires_grad=True)
        (weight @ weight).sum().backward()


def recorder(device: torch.device) -> Recorder:
    """The one for `device`."""
    return DeviceRecorder(device) if device.type == "cuda" else HostRecorder()


def add_up(events: Iterable[tuple[int, str]]) -> list[PhaseSnapshot]:
    """Marks of a sequence of (bytes taken or given back, "") and (0, phase).

    >>> add_up([(5, ""), (-3, ""), (0, "forward"), (1, ""), (0, "backward")])
    [PhaseSnapshot(phase='forward', live=2, peak=5), PhaseSnapshot(phase='backward', live=3, peak=3)]
    """
    marks: list[PhaseSnapshot] = []
    live = peak = 0
    for size, phase in events:
        live += size
        peak = max(peak, live)
        if phase:
            marks.append(PhaseSnapshot(phase, live, peak))
            peak = live
    return marks


@dataclass(frozen=True)
class Holding:
    """One storage of a model."""

    name: str  # of the first tensor in it
    size: int  # bytes
    constant: bool  # of a quantisation: needed to read a weight
    trainable: bool


def holdings(model: nn.Module) -> dict[StorageWeakRef, Holding]:
    """Each storage that a model's parameters, buffers, quantisation states and other attributes hold, once.

    Of what is in shares, this process's own.
    """
    found: dict[StorageWeakRef, Holding] = {}

    def add(name: str, tensor: Tensor, constant: bool) -> None:
        storage = to_local(tensor).untyped_storage()
        holding = Holding(name, storage.nbytes(), constant, tensor.requires_grad)
        found.setdefault(StorageWeakRef(storage), holding)

    own = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in own:
        add(name, tensor, False)
    for name, tensor in own:
        for inner, _ in _inside(vars(tensor), True):  # bitsandbytes hangs scales and offsets on the weight
            add(name, inner, True)
    for name, module in model.named_modules():
        attributes = {key: value for key, value in vars(module).items() if key not in ("_parameters", "_buffers")}
        for inner, constant in _inside(attributes, False):
            add(name, inner, constant)
    return found


def static_bytes(model: nn.Module, base: Container[StorageWeakRef], head: Sequence[str]) -> dict[str, int]:
    """Bytes of `model` by base, constants, method and head.

    `base` are the storages that were there before the method was attached, `head` the task's modules.
    """
    found = {"base": 0, "constants": 0, "method": 0, "head": 0}
    for storage, holding in holdings(model).items():
        of_head = within(holding.name, head)
        if holding.constant:
            kind = "constants"
        elif of_head and (holding.trainable or storage not in base):
            kind = "head"
        else:
            kind = "base" if storage in base else "method"
        found[kind] += holding.size
    return found


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Of the tensors' storages, each once."""
    storages = (to_local(tensor).untyped_storage() for tensor in tensors)
    return sum({StorageWeakRef(storage): storage.nbytes() for storage in storages}.values())


def process_peak() -> int:
    """The most memory the process has had, by the operating system."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _inside(value: Any, constant: bool) -> Iterator[tuple[Tensor, bool]]:
    """The tensors in a value, and whether they belong to a quantisation. Modules are looked at on their own."""
    if isinstance(value, Tensor):
        yield value, constant
    elif isinstance(value, dict):
        for item in value.values():
            yield from _inside(item, constant)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _inside(item, constant)
    elif isinstance(value, (QuantState, MatmulLtState)):
        yield from _inside(vars(value), True)
