"""Out of memory: how it shows on each device, and what is known of it."""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path

import torch

SIGNS = (
    "Cannot allocate memory",  # the system's own words, e.g. where a file of weights is mapped
    *("can't allocate memory", "not enough memory", "CUDA out of memory", "CUDA error: out of memory"),
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED", "CUDNN_STATUS_ALLOC_FAILED"),
    *("Cuda failure 2", "Cuda failure 'out of memory'"),  # NCCL's
    *("could not create a primitive", "could not create a memory object"),  # oneDNN's, on a CPU
    "Cannot allocate memory (12)",  # of a file of weights that is mapped
)


def caused(error: BaseException) -> bool:
    """Whether the error is a device's or the process's want of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def asked_for(error: BaseException) -> str:
    """How much more was wanted, as far as the error says.

    >>> asked_for(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 3221225472 bytes."))
    '3.0 GiB more were wanted'
    >>> asked_for(RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ..."))
    '20.00 MiB more were wanted'
    >>> asked_for(MemoryError())
    'it is not known how much more was wanted'
    """
    text = str(error)
    if found := re.search(r"(?:tried to allocate|unable to mmap) (\d+) bytes", text, re.IGNORECASE):
        return f"{size(int(found[1]))} more were wanted"
    if found := re.search(r"tried to allocate ([\d.]+ [KMG]iB)", text, re.IGNORECASE):
        return f"{found[1]} more were wanted"
    return "it is not known how much more was wanted"


def limits(device: torch.device) -> str:
    """What this process may have of the device's memory, and the most that it had."""
    if device.type == "cuda":
        free, whole = torch.cuda.mem_get_info(device)
        most = torch.cuda.max_memory_allocated(device)
        return f"the device has {size(whole)}, {size(free)} of it free; the peak of tensors was {size(most)}"
    known = []
    if (limit := _limit()) is not None:
        known.append(f"the process may have {size(limit)}")
    if (peak := _peak()) is not None:
        known.append(f"its peak was {size(peak)}")
    return ", ".join(known) or "its limit is not known here"


def size(count: int) -> str:
    """
    >>> size(3 * 2**30), size(2**20 * 5)
    ('3.0 GiB', '5 MiB')
    """
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _limit() -> int | None:
    """Bytes: the least of the machine's memory, its control group's and the process's own limit of addresses."""
    found: list[int] = []
    if sys.platform != "win32":
        import resource

        addresses, _ = resource.getrlimit(resource.RLIMIT_AS)
        found += [addresses] if addresses != resource.RLIM_INFINITY else []
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:
        group = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        group = ""
    if group.isdigit():
        found.append(int(group))
    return min(found) if found else None


def _peak() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
