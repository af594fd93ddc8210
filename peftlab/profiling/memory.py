"""Memory measurement: bytes of a model at rest, and allocations while it trains."""

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
from peftlab.profiling.snapshots import PhaseSnapshot
from peftlab.quantization.packing.packed_linear import packed_linears

MARK = "peftlab mark: "  # prefix of profiler events


class Recorder(Protocol):
    """Records the memory of a device between entering and leaving the context."""

    def __enter__(self) -> Recorder: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def mark(self, phase: str) -> None:
        """Take a snapshot at the end of a phase."""

    def snapshots(self) -> list[PhaseSnapshot]:
        """The snapshots in order; call it after leaving the context."""

    @property
    def reserved(self) -> int | None:
        """Most bytes that the device's allocator reserved; None on a CPU."""


class HostRecorder:
    """Recorder for the CPU: every allocation and release, from torch's profiler. Every run gives the same bytes."""

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

    def snapshots(self) -> list[PhaseSnapshot]:
        profiler: Any = self._profile.profiler
        events: list[tuple[int, int, str]] = []  # time, bytes, phase
        pending = list(profiler.kineto_results.experimental_event_tree())
        while pending:
            event = pending.pop()
            pending += event.children
            kind, details = event.typed
            if kind.name == "Allocation" and details.device.type == "cpu":
                events.append((event.start_time_ns, details.alloc_size, ""))
            elif event.name.startswith(MARK):
                events.append((event.start_time_ns, 0, event.name.removeprefix(MARK)))
        return add_up((size, phase) for _, size, phase in sorted(events, key=lambda event: event[0]))


class DeviceRecorder:
    """Recorder for a GPU: the statistics of CUDA's allocator, read and reset at each mark."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = 0
        self._snapshots: list[PhaseSnapshot] = []
        self.reserved: int | None = None

    def __enter__(self) -> DeviceRecorder:
        _allocate_workspaces(self._device)
        torch.cuda.synchronize(self._device)
        self._start = self._requested("current")
        self.reserved = torch.cuda.memory_reserved(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._update_reserved()

    def mark(self, phase: str) -> None:
        # The allocator acts when work is queued, not when it is done, so that no synchronization is needed.
        live, peak = self._requested("current") - self._start, self._requested("peak") - self._start
        self._snapshots.append(PhaseSnapshot(phase, live, peak))
        self._update_reserved()
        torch.cuda.reset_peak_memory_stats(self._device)

    def snapshots(self) -> list[PhaseSnapshot]:
        return list(self._snapshots)

    def _requested(self, figure: str) -> int:
        """Bytes that tensors requested; the allocator rounds them up to multiples of 512."""
        return int(torch.cuda.memory_stats(self._device)[f"requested_bytes.all.{figure}"])

    def _update_reserved(self) -> None:
        self.reserved = max(self.reserved or 0, torch.cuda.max_memory_reserved(self._device))


def _allocate_workspaces(device: torch.device) -> None:
    """Have cuBLAS allocate its workspaces, for both passes, before anything is measured."""
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.ones(64, 64, device=device, dtype=dtype, requires_grad=True)
        (weight @ weight).sum().backward()


def recorder(device: torch.device) -> Recorder:
    """The recorder for a device."""
    return DeviceRecorder(device) if device.type == "cuda" else HostRecorder()


def add_up(events: Iterable[tuple[int, str]]) -> list[PhaseSnapshot]:
    """Snapshots from a sequence of events: (bytes allocated or released, "") and (0, phase).

    >>> add_up([(5, ""), (-3, ""), (0, "forward"), (1, ""), (0, "backward")])
    [PhaseSnapshot(phase='forward', live=2, peak=5), PhaseSnapshot(phase='backward', live=3, peak=3)]
    """
    snapshots: list[PhaseSnapshot] = []
    live = peak = 0
    for size, phase in events:
        live += size
        peak = max(peak, live)
        if phase:
            snapshots.append(PhaseSnapshot(phase, live, peak))
            peak = live
    return snapshots


@dataclass(frozen=True)
class Holding:
    """One storage of a model."""

    name: str
    """Name of the first tensor in it."""
    size: int
    """Bytes."""
    constant: bool
    """A quantization constant, which is needed to dequantize a weight."""
    trainable: bool


def holdings(model: nn.Module) -> dict[StorageWeakRef, Holding]:
    """Every storage of a model's parameters, buffers, quantization states and other attributes, once.

    Of a sharded tensor, the local shard.
    """
    storages: dict[StorageWeakRef, Holding] = {}

    def add(name: str, tensor: Tensor, constant: bool) -> None:
        storage = to_local(tensor).untyped_storage()
        holding = Holding(name, storage.nbytes(), constant, tensor.requires_grad)
        storages.setdefault(StorageWeakRef(storage), holding)

    tensors = [*model.named_parameters(), *model.named_buffers()]
    constants = {
        f"{name}.{constant}" for name, linear in packed_linears(model).items() for constant in linear.constants
    }
    for name, tensor in tensors:
        add(name, tensor, name in constants)
    for name, tensor in tensors:
        for inner, _ in _inside(vars(tensor), True):  # bitsandbytes stores scales and offsets as attributes of weights
            add(name, inner, True)
    for name, module in model.named_modules():
        attributes = {key: value for key, value in vars(module).items() if key not in ("_parameters", "_buffers")}
        for inner, constant in _inside(attributes, False):
            add(name, inner, constant)
    return storages


def static_bytes(model: nn.Module, base: Container[StorageWeakRef], head: Sequence[str]) -> dict[str, int]:
    """Bytes of `model` by base, constants, method and head.

    `base` has the storages from before the method was attached, `head` the names of the task's head modules.
    """
    sizes = {"base": 0, "constants": 0, "method": 0, "head": 0}
    for storage, holding in holdings(model).items():
        in_head = within(holding.name, head)
        if holding.constant:
            kind = "constants"
        elif in_head and (holding.trainable or storage not in base):
            kind = "head"
        else:
            kind = "base" if storage in base else "method"
        sizes[kind] += holding.size
    return sizes


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' storages, each counted once."""
    storages = (to_local(tensor).untyped_storage() for tensor in tensors)
    return sum({StorageWeakRef(storage): storage.nbytes() for storage in storages}.values())


def process_peak() -> int:
    """Peak resident memory of the process in bytes, from the operating system."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _inside(value: Any, constant: bool) -> Iterator[tuple[Tensor, bool]]:
    """The tensors in a value, and whether they are quantization constants. Modules inside it are skipped."""
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
