"""A suite with simulated results, for which nothing is trained, and helpers to read its report."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from peftlab.profiling.profile import MIB, Flops, Inference, Memory, Profile, Times
from peftlab.reports import markdown
from peftlab.reports.analysis import Analysis
from peftlab.reports.files import text_files
from peftlab.reports.result_row import ResultRow
from peftlab.reports.sections import build_document
from peftlab.results.run_result import RunResult

SUITE = """\
description: An example suite
seeds: [1, 2, 3, 4]
margin: 0.1
model: sentence-transformers/all-MiniLM-L6-v2
task: token_classification
data: datamade/usaddress
training: {epochs: 1, batch_tokens: 256}
quantizations: [none, nf4]
tasks: {addresses: {}}
methods:
  full: {method: full, learning_rate: 1e-4}
  lora: {method: lora, learning_rate: 1e-3}
  bitfit: {method: bitfit, learning_rate: 1e-3, quantizations: [none]}
published:
  - {task: addresses, method: lora, value: 0.8, tolerance: 0.1, source: "A paper, table 1"}
"""
SKILL = {"full": 0.8, "lora": 0.8, "bitfit": 0.4}
EXAMPLES = 200


def result(recipe: Any, score: float) -> RunResult:
    values = {
        "name": recipe.name, "digest": recipe.digest, "recipe": recipe.model_dump(mode="json"),
        "started": "2026-01-01T00:00:00+00:00", "command": ["peftlab"],
        "metrics": {"validation": {"entity_f1": score}} | ({"test": {"entity_f1": score}} if recipe.score_test else {}),
        "selection": "entity_f1", "best_step": 2, "stopped_early": False,
        "curve": {"steps": [1, 2], "scores": [score / 2, score], "losses": [1.0, 0.5]},
        "parameters": {"method": 1000, "head": 10, "trainable": 1010, "base": 101000, "trainable_fraction": 0.01},
        "method_stats": {}, "fidelity": None,
        "cost": {"load_seconds": 1.0, "train_seconds": 7777.0, "evaluate_seconds": 1.0, "optimizer_steps": 2,
                 "tokens": 400, "tokens_per_second": 200.0, "padding_fraction": 0.1, "adapter_bytes": 4096},
        "splits": {"train": {"examples": 20, "tokens": 400, "dropped": {"lost_words": 2}}},
        "model_source": "m", "model_fingerprint": "a" * 64, "data_source": "d", "data_fingerprint": "b" * 64,
        "environment": {
            "code": {"commit": "c" * 40, "modified": False}, "python": "3.11", "libraries": {"torch": "2.13.0"},
            "hardware": {"processor": "p", "cores": 2, "threads": 1, "memory_bytes": 1, "accelerators": [],
                         "driver": None},
            "device": "cpu", "precision": "float32", "processes": 1,
        },
    }  # fmt: skip
    return RunResult.model_validate_json(json.dumps(values))


def counts(recipe: Any) -> list[list[float]]:
    """Counts of 200 examples with two reference and two predicted entities each, some of them right."""
    skill = SKILL[recipe.method.kind]
    generator = np.random.default_rng([recipe.seeds.initialization, sum(map(ord, recipe.method.kind))])
    right = generator.binomial(2, skill, EXAMPLES)
    return [[float(n), 2.0, 2.0] for n in right]


def profile(recipe: Any, *, peak: int, seconds: float, merged: float | None) -> Profile:
    memory = {
        "base": 40 * MIB, "constants": MIB // 2, "method": MIB, "head": MIB, "optimizer": 4 * MIB, "persistent": 100,
        "inputs": 1000, "activations": 10 * MIB, "gradients": 2 * MIB, "retained": 0, "transient": 3 * MIB,
        "peak": peak * MIB, "best_state": None, "evaluation_peak": 50 * MIB, "reserved": None, "process_peak": 7000,
    }  # fmt: skip
    return Profile(
        **{"name": recipe.name, "digest": recipe.digest, "examples": 2, "length": 128},
        memory=Memory(**memory),
        flops=Flops(forward=20e6, backward=19e6),
        times=Times(
            steps=10,
            median=seconds,
            quartiles=(seconds * 0.9, seconds * 1.2),
            tokens_per_second=256 / seconds,
            matmul_flops_per_second=1e11,
            matmul_fraction=0.4,
        ),
        inference=Inference(unmerged=0.3, merged=merged, base=0.2, merge_error=1.5e-6 if merged else None),
        environment=result(recipe, 0.5).environment,
    )


def markdown_of(analysis: Analysis) -> str:
    return markdown.render(build_document(analysis), root="..")


def report_of(analysis: Analysis) -> dict[str, str]:
    """Text files of the report, by name."""
    return text_files(analysis, build_document(analysis))


def row_of(analysis: Analysis, name: str) -> ResultRow:
    """Row of the combination with this name."""
    return next(row for row in analysis.rows if row.combination.name == name)


def table_rows(text: str) -> dict[tuple[str, str], list[str]]:
    """Cells of the first Markdown table, by method and precision, without footnotes."""
    lines = text.split("| method | precision |")[1].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {(re.sub(r" \[.*\]", "", row[0]), row[1]): row[2:] for row in cells}


def changed(folder: Path, target: Path, change: dict[str, Any]) -> Path:
    """A copy of the suite in which one LoRA run has other values; keys are dotted paths."""
    copy = Path(shutil.copytree(folder, target / "example"))
    path = next((copy / "results").glob("addresses-lora-none-seed1-*.json"))
    values = json.loads(path.read_text())
    for key, value in change.items():
        *parents, last = key.split(".")
        inner = values["result"]
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    path.write_text(json.dumps(values))
    return copy
