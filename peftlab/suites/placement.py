"""Several processes per run on this machine, forked with the environment that `accelerate launch` would set."""

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
    """Processes of each run, and how they hold the model."""

    processes: int = Field(1, ge=1, le=64, examples=[2])
    """Number of processes per run, with one GPU each on a machine with GPUs."""
    sharded: bool = False
    """Shard the model over the processes with FSDP2. By default each process holds a copy (DDP)."""

    @model_validator(mode="after")
    def _shared_by_several(self) -> Self:
        if self.sharded and self.processes == 1:
            raise ValueError("sharded: true needs several processes; set processes")
        return self

    @property
    def described(self) -> str:
        """The placement as the setup of a table describes it.

        >>> Placement(processes=2, sharded=True).described
        '2 processes, each with a shard of the model (FSDP2)'
        """
        held = "a shard of the model (FSDP2)" if self.sharded else "a copy of the model"
        return "1 process" if self.processes == 1 else f"{self.processes} processes, each with {held}"

    def check(self, gpus: int) -> None:
        """Raise UserError if the machine has GPUs, but fewer than processes."""
        if 0 < gpus < self.processes:
            raise UserError(f"placement.processes: {self.processes} need one GPU each, and this machine has {gpus}")

    def run(self, work: Callable[[], object]) -> None:
        """Call `work` in this process, or in each of several forked ones with the rank variables of torch.distributed.

        As soon as one process fails, the others are killed and this process ends in the same way: killed by the same
        signal, or with exit code 1.
        """
        if self.processes == 1:
            work()
            return
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        pids = {_fork(work, address | self._rank_variables(rank)) for rank in range(self.processes)}
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

    def _rank_variables(self, rank: int) -> dict[str, str]:
        count = str(self.processes)
        variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        return variables | ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} if self.sharded else {})


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def _fork(work: Callable[[], object], environment: Mapping[str, str]) -> int:
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
