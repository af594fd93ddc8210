"""Runs a function in a forked child with a time limit; a memory limit of the process applies to the child as well."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

PAGE = resource.getpagesize()


@dataclass(frozen=True)
class Ended:
    """What became of a child."""

    value: Any
    """What the function returned; None if it did not return."""
    error: str | None
    """Why it did not return."""
    seconds: float
    peak: int
    """Bytes that the child had in memory above what it began with; 0 if it was killed."""


def limit_memory(extra: int) -> None:
    """Let this process and its children use `extra` bytes of address space more than now."""
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE + extra
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def resident() -> int:
    """Bytes of this process that are in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def run_in_fork(function: Callable[[], Mapping[str, Any]], *, seconds: float) -> Ended:
    """Run the function in a child of this process and kill it after `seconds`. Its value is sent as JSON.

    The process must have no other threads at work.
    """
    reader, writer = os.pipe()
    began = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _answer(function, writer)
    os.close(writer)
    text = _read(reader, began + seconds)
    os.close(reader)
    late = text is None
    if late:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    took = time.monotonic() - began
    if not text:
        error = f"not done after {seconds:g} s" if late else f"the process died with status {status}"
        return Ended(None, error, took, 0)
    answer = json.loads(text)
    return Ended(answer["value"], answer["error"], took, answer["peak"])


def _read(reader: int, until: float) -> bytes | None:
    """All that the child writes, or None if it has not ended by then."""
    parts: list[bytes] = []
    while True:
        ready, _, _ = select.select([reader], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            return None
        part = os.read(reader, 1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)


def _answer(function: Callable[[], Mapping[str, Any]], writer: int) -> NoReturn:
    """Call the function in the child, write its value or its error, and end without any cleaning up."""
    start, value, error = resident(), None, None
    try:
        value = function()
    except MemoryError:
        error = "MemoryError"
    except Exception:  # written, and judged by the parent
        error = traceback.format_exc()[-2000:]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with os.fdopen(writer, "wb") as stream:
        stream.write(json.dumps({"value": value, "error": error, "peak": max(0, peak - start)}).encode())
    os._exit(0)
