"""A tiny model, a few rows, and a server that forks `peftlab` commands on them."""

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
from peftlab.results.run_result import RunResult, read_result
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
NIGHT = os.environ.get("PEFTLAB_FAULTS") == "all"  # the counts of a night


def counted(change: int, night: int) -> int:
    """How many to try on every change, and over night."""
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
    """Both processes of one command, started."""
    return lab.server.start_two(*words, faults=faults, **environment)


def both(
    lab: Lab, words: Sequence[str | Path], faults: dict[int, list[list[Any]]] | None = None, **environment: str
) -> list[Done]:
    """The same, ended."""
    return lab.server.run_two(*words, faults=faults, **environment)


@pytest.fixture(scope="session")
def lab(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("faults")
    make_inputs(folder)
    return Lab(server.inside(folder), folder)


@pytest.fixture
def output(lab: Lab) -> Iterator[Path]:
    """A folder for one test's runs, gone after it."""
    path = lab.folder / f"output-{next(lab.server.numbers)}"
    yield path
    shutil.rmtree(path, ignore_errors=True)


def make_inputs(folder: Path) -> None:
    """A model with a tokenizer, rows and a recipe."""
    from peftlab.models.tiny_model import byte_tokenizer

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
    method = {**METHODS[combination.kind].test_settings[combination.sample], "kind": combination.kind}
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
