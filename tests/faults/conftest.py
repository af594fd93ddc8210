"""Fixtures of the fault tests: a tiny model, a few rows, and a server that forks `peftlab` commands on them."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from peftlab.methods import METHODS
from peftlab.methods.method import MethodContext
from peftlab.results.result_file import read_result
from peftlab.results.run_result import RunResult
from tests.commands import Done, Running, Server
from tests.contract import bases

STEPS = 8
RECIPE = f"""\
model: tiny
task: token_classification
data: {{train: rows.jsonl, validation: rows.jsonl, test: rows.jsonl}}
method: {{kind: lora, rank: 2, dropout: 0.1}}
training: {{steps: {STEPS}, evaluate_every: 3, batch_examples: 4, learning_rate: 2e-2, precision: float32,
  dropout: 0.1}}
"""
NIGHT = os.environ.get("PEFTLAB_FAULTS") == "all"  # `make test-night`


def counted(change: int, night: int) -> int:
    """Number of repetitions: `change` in make test-all, `night` in make test-night."""
    return night if NIGHT else change


COMBINATIONS = [
    combination
    for combination in bases.SUPPORTED
    if combination.family == "encoder"
    and combination.method.incompatible_with(
        MethodContext(architecture="bert", quantization=combination.precision, task_type="TOKEN_CLS")
    )
    is None
]


def kind_and_quantization(combination: bases.Combination) -> tuple[str, str]:
    return combination.kind, combination.precision


@dataclass(frozen=True)
class Trained:
    """Outputs of a finished run."""

    digest: str
    result: RunResult
    predictions: bytes


class Lab:
    """Runs variants of one tiny recipe, and caches the uninterrupted ones."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder = server, folder
        self._uninterrupted: dict[tuple[str, ...], Trained] = {}
        self.cache: dict[tuple[str, ...], Trained] = {}  # uninterrupted runs of two processes, by their overrides
        self.folders: dict[str, Path] = {}  # outputs that several tests read

    def words(self, output: Path, *overrides: str) -> list[str | Path]:
        return [
            "run",
            "tiny.yaml",
            "--output",
            output,
            *itertools.chain(*(("--set", override) for override in overrides)),
        ]

    def uninterrupted(self, *overrides: str) -> Trained:
        """Outputs of an uninterrupted run under these overrides."""
        if overrides not in self._uninterrupted:
            output = self.folder / f"uninterrupted-{len(self._uninterrupted)}"
            done = self.server.run(*self.words(output, *overrides))
            assert done.code == 0, done.err
            self._uninterrupted[overrides] = finished(output)
            shutil.rmtree(output)
        return self._uninterrupted[overrides]


def two(
    lab: Lab, words: Sequence[str | Path], faults: dict[int, list[list[Any]]] | None = None, **environment: str
) -> list[Running]:
    """Start a command in two processes."""
    return lab.server.start_two(*words, faults=faults, **environment)


def both(
    lab: Lab, words: Sequence[str | Path], faults: dict[int, list[list[Any]]] | None = None, **environment: str
) -> list[Done]:
    """Run a command in two processes and wait for both."""
    return lab.server.run_two(*words, faults=faults, **environment)


@pytest.fixture(scope="session")
def lab(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("faults")
    make_inputs(folder)
    return Lab(server.inside(folder), folder)


@pytest.fixture
def output(lab: Lab) -> Iterator[Path]:
    """An output folder for one test, deleted after it."""
    path = lab.folder / f"output-{next(lab.server.numbers)}"
    yield path
    shutil.rmtree(path, ignore_errors=True)


def make_inputs(folder: Path) -> None:
    """Write a tiny model with its tokenizer, rows and a recipe."""
    from peftlab.models.byte_tokenizer import byte_tokenizer

    model = bases.tiny("bert", "AutoModel", max_position_embeddings=64, vocab_size=512, intermediate_size=128)
    model.save_pretrained(folder / "tiny")
    byte_tokenizer(model.config).save_pretrained(folder / "tiny")
    rows = [
        {"tokens": [f"{number * 7 % 10}", "Main"[: 1 + number % 4], "St"], "labels": ["B-N", "B-S", "I-S"]}
        for number in range(20)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tiny.yaml").write_text(RECIPE)


def overrides(combination: bases.Combination) -> tuple[str, ...]:
    """Overrides that select this method and quantization."""
    method = {**METHODS[combination.kind].test_settings[combination.sample], "kind": combination.kind}
    if "dropout" in METHODS[combination.kind].model_fields:
        method.setdefault("dropout", 0.1)
    if "train_tokens" in method:
        method["train_tokens"] = ["St"]  # a token that no training row has is refused
    return (f"method={json.dumps(method)}", f"quantization={combination.precision}")


def finished(output: Path) -> Trained:
    """Outputs of the only run below `output`; fails if the run left anything else."""
    (path,) = output.glob("tiny/*/result.json")
    assert [p.name for p in path.parent.parent.iterdir() if not p.name.startswith(".")] == [path.parent.name]
    return Trained(digest(path.parent), read_result(path), (path.parent / "predictions.jsonl").read_bytes())


def digest(run: Path) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of the adapter and head tensors, sorted by name."""
    total = hashlib.sha256()
    for file in sorted(run.glob("*/*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in sorted(tensors.keys()):
                tensor = tensors.get_tensor(name)
                total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                total.update(tensor.contiguous().flatten().view(-1).numpy().tobytes())
    return total.hexdigest()


def steps(output: Path) -> list[Path]:
    """Checkpoints below `output`, oldest first."""
    return sorted(output.glob("tiny/*.checkpoints/step-*"))


def one_line(text: str) -> str:
    """The only line of a text."""
    (line,) = text.splitlines()
    return line


KILLED = -signal.SIGKILL
