"""A run of a suite in several processes of this machine, forked like a single one: what `accelerate launch` does."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Self

from pydantic import Field, model_validator

from peftlab.component import Settings
from peftlab.errors import UserError


class Placement(Settings):
    """Over how many processes each run is spread, a GPU each if there are any, and how."""

    processes: int = Field(1, ge=1, le=64)
    sharded: bool = False  # a share of the model each (FSDP2), not a copy

    @model_validator(mode="after")
    def _shared_by_several(self) -> Self:
        if self.sharded and self.processes == 1:
            raise ValueError("one process has nobody to share the model with; set processes too")
        return self

    @property
    def described(self) -> str:
        """For a table's setup.

        >>> Placement(processes=2, sharded=True).described
        '2 processes, each with a share of the model (FSDP2)'
        """
        held = "a share of the model (FSDP2)" if self.sharded else "a copy of the model"
        return "1 process" if self.processes == 1 else f"{self.processes} processes, each with {held}"

    def check(self, gpus: int) -> None:
        """Raise UserError on a machine with GPUs, but not one for each process."""
        if 0 < gpus < self.processes:
            raise UserError(f"placement.processes: found {self.processes}, and {gpus} GPUs, which take one each")

    def run(self, work: Callable[[], object]) -> None:
        """Do `work` here, or in as many processes, each told its rank as `accelerate launch` would tell it.

        As soon as one of them fails the others are killed, and this process ends as that one did.
        """
        if self.processes == 1:
            work()
            return
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        pids = {_forked(work, address | self._place(rank)) for rank in range(self.processes)}
        failed = 0
        while pids:
            pid, status = os.wait()
            pids.discard(pid)
            if status and not failed:
                failed = status
                for other in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(other, signal.SIGKILL)
        if os.WIFSIGNALED(failed):
            os.kill(os.getpid(), os.WTERMSIG(failed))
        if failed:
            raise SystemExit(1)

    def _place(self, rank: int) -> dict[str, str]:
        count = str(self.processes)
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        return place | ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} if self.sharded else {})


def die_with(parent: int) -> None:
    """Have the system kill this process when its parent ends, on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def _forked(work: Callable[[], object], environment: Mapping[str, str]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        die_with(parent)
        os.environ.update(environment)
        from peftlab.runs.launch import reset_accelerator_state

        reset_accelerator_state()  # the parent's
        work()
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
