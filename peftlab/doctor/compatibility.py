"""The compatibility matrix: tries every method with every quantization, task and architecture."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from peftlab.doctor import checks
from peftlab.doctor.probe import LIBRARY_ERRORS, ProbeModel, make_probe_model, make_probe_run
from peftlab.errors import UserError
from peftlab.io.markdown_table import markdown_table
from peftlab.methods import METHODS
from peftlab.models.configs import stored_configs
from peftlab.quantization import QUANTIZATIONS
from peftlab.recipe import Recipe
from peftlab.results.environment import environment
from peftlab.tasks import TASKS

FILE = Path("docs/compatibility.md")
WIDTH = 128  # twice what the methods' test settings are for: a narrower bottleneck may start with dead units only
BASES = (  # one of each architecture
    *("google-bert/bert-base-cased", "FacebookAI/roberta-base", "distilbert/distilbert-base-uncased"),
    *("google/electra-small-discriminator", "albert/albert-base-v2", "microsoft/deberta-v3-base"),
    *("answerdotai/ModernBERT-base", "openai-community/gpt2", "EleutherAI/pythia-160m", "facebook/opt-125m"),
    *("meta-llama/Llama-3.2-1B", "mistralai/Mistral-7B-v0.1", "Qwen/Qwen2.5-0.5B", "google/gemma-2b"),
    *("google-t5/t5-small", "facebook/bart-base"),
)
CHECKS = (
    *(checks.check_gradients, checks.check_only_the_method, checks.check_after_evaluation),
    *(checks.check_base_unchanged, checks.check_reload),
)


@dataclass(frozen=True)
class Cell:
    """One combination and its outcome."""

    task: str
    architecture: str
    quantization: str
    method: str  # kind and settings
    refused: str | None = None  # why validation refuses it
    failed: str | None = None  # what fails although validation accepts it


@dataclass(frozen=True)
class Matrix:
    """All cells, and the architectures without a head for a task."""

    cells: Sequence[Cell]
    headless: Sequence[tuple[str, str]]  # task, architecture


def try_all(
    *,
    tasks: Sequence[str] = tuple(TASKS),
    bases: Sequence[str] = BASES,
    quantizations: Sequence[str] = tuple(QUANTIZATIONS),
    methods: Sequence[str] = tuple(METHODS),
    say: Callable[[str], object] = print,
) -> Matrix:
    """Train every combination for a few steps on the CPU in float32. About a third of a second each."""
    cells: list[Cell] = []
    headless = []
    for task in tasks:
        for base in bases:
            architecture = str(stored_configs()[base]["model_type"])
            recipes = [
                _recipe(task, base, quantization, {"kind": kind, **sample})
                for quantization in quantizations
                for kind in methods
                for sample in METHODS[kind].test_settings
            ]
            with tempfile.TemporaryDirectory() as folder:
                try:
                    probe = make_probe_model(
                        recipes[0], stored_configs()[base], Path(folder), device=torch.device("cpu"), width=WIDTH
                    )
                except UserError:
                    headless.append((task, architecture))
                    continue
                tried = [_try(dataclasses.replace(probe, recipe=recipe), architecture) for recipe in recipes]
            bad = sum(cell.failed is not None for cell in tried)
            say(f"{task}, {architecture}: {len(tried)} combinations" + (f", {bad} FAIL" if bad else ""))
            cells += tried
    return Matrix(cells, headless)


def document(matrix: Matrix) -> str:
    """Markdown with one table per task and quantization, reasons as footnotes."""
    installed = environment("cpu", "float32", 1).libraries
    versions = ", ".join(
        f"{name} {installed[name]}" for name in ("torch", "transformers", "peft", "bitsandbytes") if name in installed
    )
    notes: dict[str, int] = {}
    lines = [
        "# What trains with what",
        "",
        f"Written by `peftlab doctor --matrix` with {versions}, on a CPU in float32. Do not edit.",
        "",
        "Each combination was attached to two layers of the architecture with random weights, trained, evaluated,",
        "trained on, saved and loaded. *trains*: every trainable tensor gets a gradient before and after evaluation",
        "and moves, the frozen base stays bit-identical, and the reloaded model gives the same logits. *refused*:",
        "validation says why before anything loads. *FAILS*: validation accepts it, and it does not work: a bug.",
    ]
    for task in dict.fromkeys(cell.task for cell in matrix.cells):
        for quantization in dict.fromkeys(cell.quantization for cell in matrix.cells):
            of_table = [cell for cell in matrix.cells if (cell.task, cell.quantization) == (task, quantization)]
            lines += ["", f"## {task}, quantization: {quantization}", "", _table(of_table, notes)]
        lacking = [architecture for name, architecture in matrix.headless if name == task]
        if lacking:
            lines += ["", f"transformers has no head that serves {task} on {', '.join(lacking)}."]
    lines += ["", *(f"[^{number}]: {reason}" for reason, number in notes.items())]
    return "\n".join(lines).rstrip() + "\n"


def _table(cells: Sequence[Cell], notes: dict[str, int]) -> str:
    architectures = list(dict.fromkeys(cell.architecture for cell in cells))
    by_place = {(cell.method, cell.architecture): cell for cell in cells}
    rows = [
        [method, *(_cell_text(by_place[method, architecture], notes) for architecture in architectures)]
        for method in dict.fromkeys(cell.method for cell in cells)
    ]
    return markdown_table(["method", *architectures], rows)


def _cell_text(cell: Cell, notes: dict[str, int]) -> str:
    reason = cell.failed or cell.refused
    if reason is None:
        return "trains"
    return f"{'**FAILS**' if cell.failed else 'refused'}[^{notes.setdefault(reason, len(notes) + 1)}]"


def _recipe(task: str, base: str, quantization: str, method: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(
        {
            **{"name": "matrix", "model": base, "data": "none", "task": task, "method": method},
            **{"quantization": quantization, "training": {"precision": "float32"}},
        }
    )


def _try(probe: ProbeModel, architecture: str) -> Cell:
    recipe = probe.recipe
    settings = recipe.method.model_dump(include=set().union(*recipe.method.test_settings), exclude_defaults=True)
    text = "".join(f", {key}: {value}" for key, value in settings.items())
    cell = Cell(recipe.task.kind, architecture, recipe.quantization.kind, f"{recipe.method.kind}{text}")
    reason = recipe.quantization.missing_library() or recipe.incompatible_with(architecture)
    if reason is not None:
        return dataclasses.replace(cell, refused=reason)
    try:
        run = make_probe_run(probe)
        results = [check(run) for check in CHECKS]
    except LIBRARY_ERRORS as error:
        return dataclasses.replace(cell, failed=checks.error_text(error))
    bad = [f"{check.name}: {check.detail}" for check in results if check.ok is False]
    return dataclasses.replace(cell, failed="; ".join(bad) or None)
