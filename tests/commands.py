"""`peftlab` commands forked from a process that has imported everything once, so that a run costs no import."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
Faults = Sequence[Sequence[Any]]  # functions of tests.faults.injected by name, with their arguments


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int  # negative: the signal that killed it
    out: str
    err: str


@dataclass
class Running:
    """A command that may still run, in a process group of its own."""

    pid: int
    server: Server
    out: Path

    def wait(self) -> Done:
        code = int(self.server.ask({"wait": self.pid}))
        with contextlib.suppress(ProcessLookupError):  # expected: no process of the group is left
            os.killpg(self.pid, 0)
            raise AssertionError(f"process group {self.pid} still exists")
        out, err = (Path(f"{self.out}.{name}").read_text() for name in ("stdout", "stderr"))
        return Done(code, out, err)

    def send(self, number: int) -> None:
        os.kill(self.pid, number)


@dataclass
class Server:
    """Forks commands that run in `folder`; their output goes to files in `printed`."""

    process: subprocess.Popen[str]
    folder: Path
    printed: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def inside(self, folder: Path) -> Server:
        """The same server with another working directory."""
        return Server(self.process, folder, self.printed, self.numbers)

    def ask(self, order: dict[str, Any]) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the fork server has ended"
        return answer

    def start(self, *words: str | Path, faults: Faults = (), **environment: str) -> Running:
        out = self.printed / f"command-{next(self.numbers)}"
        order = {
            "words": [str(word) for word in words],
            "out": str(out),
            "folder": str(self.folder),
            "environment": environment,
            "faults": [[name, arguments] for name, *arguments in faults],
        }
        return Running(int(self.ask(order)), self, out)

    def run(self, *words: str | Path, faults: Faults = (), **environment: str) -> Done:
        return self.start(*words, faults=faults, **environment).wait()

    def start_two(
        self, *words: str | Path, faults: Mapping[int, Faults] | None = None, **environment: str
    ) -> list[Running]:
        """Start a command in two processes over gloo, with the environment of a launcher; `faults` by rank."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        launcher = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        launcher = {"ACCELERATE_USE_CPU": "true", **launcher, **environment}
        return [
            self.start(*words, faults=(faults or {}).get(rank, ()), **launcher, RANK=str(rank), LOCAL_RANK=str(rank))
            for rank in (0, 1)
        ]

    def run_two(self, *words: str | Path, faults: Mapping[int, Faults] | None = None, **environment: str) -> list[Done]:
        """Run a command in two processes and wait for both."""
        return [process.wait() for process in self.start_two(*words, faults=faults, **environment)]


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A fork server for as long as the context lasts; `folder` is its working directory."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.command_server"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
             "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield Server(process, folder, folder)
    assert process.stdin is not None
    process.stdin.close()
    process.wait(timeout=30)
