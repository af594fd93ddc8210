"""A tiny model, a few rows, and a server that forks `peftlab` commands on them."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from peftlab.methods import METHODS
from peftlab.methods.method import Setting
from peftlab.results import RunResult, read_result
from tests.contract import bases

ROOT = Path(__file__).parent.parent.parent
STEPS = 8
RECIPE = f"""\
model: tiny
task: token_classification
data: {{train: rows.jsonl, validation: rows.jsonl, test: rows.jsonl}}
method: {{kind: lora, rank: 2, dropout: 0.1}}
training: {{steps: {STEPS}, evaluate_every: 3, batch_examples: 4, learning_rate: 2e-2, precision: float32,
  dropout: 0.1}}
"""
NIGHT = os.environ.get("PEFTLAB_FAULTS") == "all"  # the counts of a night


def counted(change: int, night: int) -> int:
    """How many to try on every change, and over night."""
    return night if NIGHT else change


COMBINATIONS = [
    combination
    for combination in bases.SUPPORTED
    if combination.family == "encoder"
    and combination.method.unsupported(Setting("bert", combination.precision, "TOKEN_CLS")) is None
]


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int  # negative: the signal that killed it
    out: str
    err: str


@dataclass
class Running:
    pid: int
    server: Server
    out: Path

    def wait(self) -> Done:
        code = int(self.server.ask({"wait": self.pid}))
        with contextlib.suppress(ProcessLookupError):  # no child of it is left
            os.killpg(self.pid, 0)
            raise AssertionError(f"process group {self.pid} is still there")
        out, err = (Path(f"{self.out}.{name}").read_text() for name in ("stdout", "stderr"))
        return Done(code, out, err)

    def send(self, number: int) -> None:
        os.kill(self.pid, number)


@dataclass
class Server:
    """Forks commands in a folder."""

    process: subprocess.Popen[str]
    folder: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def ask(self, order: dict[str, Any]) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the fork server is gone"
        return answer

    def start(self, *words: str | Path, faults: Sequence[Sequence[Any]] = (), **environment: str) -> Running:
        out = self.folder / f"command-{next(self.numbers)}"
        order = {
            "words": [str(word) for word in words],
            "out": str(out),
            "folder": str(self.folder),
            "environment": environment,
            "faults": [[name, arguments] for name, *arguments in faults],
        }
        return Running(int(self.ask(order)), self, out)

    def run(self, *words: str | Path, faults: Sequence[Sequence[Any]] = (), **environment: str) -> Done:
        return self.start(*words, faults=faults, **environment).wait()


@dataclass(frozen=True)
class Trained:
    """What a finished run left."""

    digest: str
    result: RunResult
    predictions: bytes


class Lab:
    """Runs of recipes, each with its own output folder."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder = server, folder
        self._whole: dict[tuple[str, ...], Trained] = {}
        self.kept: dict[tuple[str, ...], Trained] = {}  # of other sorts of runs
        self.folders: dict[str, Path] = {}  # of runs that several tests look at

    def words(self, output: Path, *sets: str) -> list[str | Path]:
        return ["run", "tiny.yaml", "--output", output, *itertools.chain(*(("--set", word) for word in sets))]

    def whole(self, *sets: str) -> Trained:
        """What an uninterrupted run gives."""
        if sets not in self._whole:
            output = self.folder / f"whole-{len(self._whole)}"
            done = self.server.run(*self.words(output, *sets))
            assert done.code == 0, done.err
            self._whole[sets] = finished(output)
            shutil.rmtree(output)
        return self._whole[sets]


def two(
    lab: Lab, words: Sequence[str | Path], faults: dict[int, list[list[Any]]] | None = None, **environment: str
) -> list[Running]:
    """Both processes of one command, over gloo, started as a launcher does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    place = {"ACCELERATE_USE_CPU": "true", **place, **environment}
    return [
        lab.server.start(*words, faults=(faults or {}).get(rank, []), **place, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in (0, 1)
    ]


def both(
    lab: Lab, words: Sequence[str | Path], faults: dict[int, list[list[Any]]] | None = None, **environment: str
) -> list[Done]:
    return [process.wait() for process in two(lab, words, faults, **environment)]


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("faults")
    make_inputs(folder)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.server"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
             "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield Lab(Server(process, folder), folder)
    assert process.stdin is not None
    process.stdin.close()
    process.wait(timeout=30)


@pytest.fixture
def output(lab: Lab) -> Iterator[Path]:
    """A folder for one test's runs, gone after it."""
    path = lab.folder / f"output-{next(lab.server.numbers)}"
    yield path
    shutil.rmtree(path, ignore_errors=True)


def make_inputs(folder: Path) -> None:
    """A model with a tokenizer, rows and a recipe."""
    from peftlab.models.small_model import byte_tokenizer

    model = bases.tiny("bert", "AutoModel", max_position_embeddings=64, vocab_size=512, intermediate_size=128)
    model.save_pretrained(folder / "tiny")
    byte_tokenizer(model.config).save_pretrained(folder / "tiny")
    rows = [
        {"tokens": [f"{number * 7 % 10}", "Main"[: 1 + number % 4], "St"], "labels": ["B-N", "B-S", "I-S"]}
        for number in range(20)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tiny.yaml").write_text(RECIPE)


def sets(combination: bases.Combination) -> tuple[str, ...]:
    """The overrides that make the recipe this method over this precision."""
    method = {**METHODS[combination.kind].samples[combination.sample], "kind": combination.kind}
    if "dropout" in METHODS[combination.kind].model_fields:
        method.setdefault("dropout", 0.1)
    return (f"method={json.dumps(method)}", f"quantization={combination.precision}")


def finished(output: Path) -> Trained:
    """The one run below `output`, which has left nothing but its result."""
    (path,) = output.glob("tiny/*/result.json")
    assert [p.name for p in path.parent.parent.iterdir() if not p.name.startswith(".")] == [path.parent.name]
    return Trained(digest(path.parent), read_result(path), (path.parent / "predictions.jsonl").read_bytes())


def digest(run: Path) -> str:
    """O1: sha256 over sorted (name, dtype, shape, bytes) of adapter and head."""
    total = hashlib.sha256()
    for file in sorted(run.glob("*/*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in sorted(tensors.keys()):
                tensor = tensors.get_tensor(name)
                total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                total.update(tensor.contiguous().flatten().view(-1).numpy().tobytes())
    return total.hexdigest()


def steps(output: Path) -> list[Path]:
    """The checkpoints below `output`, oldest first."""
    return sorted(output.glob("tiny/*.checkpoints/step-*"))


KILLED = -signal.SIGKILL
