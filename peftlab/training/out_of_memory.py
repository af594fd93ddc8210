"""Out-of-memory errors: how each device reports them, and how much memory there is."""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path

import torch

MESSAGES = (
    "Cannot allocate memory",  # the operating system, e.g. when a file of weights is mapped
    *("can't allocate memory", "not enough memory", "CUDA out of memory", "CUDA error: out of memory"),
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED", "CUDNN_STATUS_ALLOC_FAILED"),
    *("Cuda failure 2", "Cuda failure 'out of memory'"),  # NCCL
    *("could not create a primitive", "could not create a memory object"),  # oneDNN, on a CPU
)


def is_out_of_memory(error: BaseException) -> bool:
    """True if the device or the process had too little memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)


def requested(error: BaseException) -> str:
    """Memory that the failed allocation requested, if the error says it.

    >>> requested(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 3221225472 bytes."))
    '3.0 GiB more were requested'
    >>> requested(RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ..."))
    '20.00 MiB more were requested'
    >>> requested(MemoryError())
    'an unknown amount was requested'
    """
    text = str(error)
    if match := re.search(r"(?:tried to allocate|unable to mmap) (\d+) bytes", text, re.IGNORECASE):
        return f"{size(int(match[1]))} more were requested"
    if match := re.search(r"tried to allocate ([\d.]+ [KMG]iB)", text, re.IGNORECASE):
        return f"{match[1]} more were requested"
    return "an unknown amount was requested"


def limits(device: torch.device) -> str:
    """Memory that this process may use on the device, and its peak so far."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        peak = torch.cuda.max_memory_allocated(device)
        return f"the device has {size(total)}, {size(free)} of it free; the peak of tensors was {size(peak)}"
    limit, process_peak = _limit(), _peak()
    facts = [] if limit is None else [f"the process may use {size(limit)}"]
    facts += [] if process_peak is None else [f"its peak was {size(process_peak)}"]
    return ", ".join(facts) or "the memory limit of this process is unknown"


def size(count: int) -> str:
    """
    >>> size(3 * 2**30), size(2**20 * 5)
    ('3.0 GiB', '5 MiB')
    """
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _limit() -> int | None:
    """Bytes: the smallest of the machine's memory, the cgroup's limit and the process's RLIMIT_AS."""
    limits: list[int] = []
    if sys.platform != "win32":
        import resource

        addresses, _ = resource.getrlimit(resource.RLIMIT_AS)
        limits += [addresses] if addresses != resource.RLIM_INFINITY else []
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:
        group = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        group = ""
    if group.isdigit():
        limits.append(int(group))
    return min(limits) if limits else None


def _peak() -> int | None:
    """Bytes: peak resident memory of this process."""
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
