"""Overview of recipes: a Markdown table of their results, one run each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peftlab.errors import UserError
from peftlab.io.markdown_table import markdown_table
from peftlab.recipe import Recipe, load_recipe
from peftlab.reports.formatting import DASH, byte_size, count, percent
from peftlab.results.result_file import is_finished, read_result
from peftlab.results.run_result import Environment, RunResult
from peftlab.runs.find_run import find_run

HEADING = """\
# Results of the recipes

Written by `make recipes`; do not edit. One run each, so the variance between seeds is unknown. *constant baseline*: a
model that predicts the most frequent label or the mean of train for every example, or copies a text. *base model*: the
base before training, if it comes with a head of its own. Both are scored on test. *tokens/s*: training tokens without
padding; the machine may have had other work. A dash stands for what was not measured. A row such as *adapter-ner
`quantization=nf4`* is `make recipe name=adapter-ner set="quantization=nf4"`.
"""
TEXT_COLUMNS = ("recipe", "metric")
NUMBER_COLUMNS = (
    "constant baseline",
    "base model",
    "validation",
    "test",
    "trainable parameters",
    "trainable fraction",
    "adapter size",
    "training time (s)",
    "tokens/s",
    "threads",
)


def overview(paths: Sequence[Path], results: Path, variants: Sequence[str] = ()) -> str:
    """Markdown table with one row per recipe file, in the order given, each followed by its variants.

    A variant is the name of a recipe and an override, e.g. "adapter-ner quantization=nf4".
    Raises UserError if there is no result at all or a variant names none of the recipes.
    """
    recipes = _with_variants(paths, variants)
    run_results = [_result(recipe, results) for _, recipe in recipes]
    if not any(run_results):
        raise UserError(f"{results}: no result of these {len(recipes)} recipes; `peftlab run FILE --output {results}`")
    rows = [[label, *_cells(recipe, result)] for (label, recipe), result in zip(recipes, run_results, strict=True)]
    header = (*TEXT_COLUMNS, *NUMBER_COLUMNS)
    table = markdown_table(header, rows, right_aligned=range(len(TEXT_COLUMNS), len(header)))
    return f"{HEADING}\n{table}\n\n{_environments(run_results)}\n"


def _with_variants(paths: Sequence[Path], variants: Sequence[str]) -> list[tuple[str, Recipe]]:
    """Label and recipe of each row."""
    overrides: dict[str, list[str]] = {}
    for variant in variants:
        name, _, override = variant.partition(" ")
        overrides.setdefault(name, []).append(override)
    recipes = []
    for path in paths:
        recipe = load_recipe(path)
        recipes.append((recipe.name, recipe))
        for override in overrides.pop(recipe.name, ()):
            recipes.append((f"{recipe.name} `{override}`", load_recipe(path, [override])))
    if overrides:
        raise UserError(f"--variant {next(iter(overrides))}: no recipe of this name is given")
    return recipes


def _result(recipe: Recipe, results: Path) -> RunResult | None:
    folder = find_run(results, recipe)
    return read_result(folder) if is_finished(folder) else None


def _cells(recipe: Recipe, result: RunResult | None) -> list[str]:
    if result is None:
        return [recipe.task.selection] + [DASH] * len(NUMBER_COLUMNS)
    metric = result.selection
    split = "test" if "test" in result.metrics else "validation"

    def score(scores: dict[str, dict[str, float]], of_split: str) -> str:
        value = scores.get(of_split, {}).get(metric)
        return DASH if value is None else f"{value:.4f}"

    return [
        f"{metric} (lower is better)" if result.selection_minimized else metric,
        score(result.constant_baseline, split),
        score(result.base_model, split),
        score(result.metrics, "validation"),
        score(result.metrics, "test"),
        count(result.parameters.trainable),
        percent(result.parameters.trainable_fraction),
        byte_size(result.cost.adapter_bytes),
        count(result.cost.train_seconds),
        count(result.cost.tokens_per_second),
        count(result.environment.hardware.threads),
    ]


def _environments(results: Sequence[RunResult | None]) -> str:
    """Machines that the runs used, each once."""
    machines = dict.fromkeys(_machine(result.environment) for result in results if result is not None)
    return f"Machines: {'; '.join(machines)}."


def _machine(environment: Environment) -> str:
    hardware = environment.hardware
    device = ", ".join(hardware.accelerators) or hardware.processor
    processes = "" if environment.processes == 1 else f"{environment.processes} processes, "
    return f"{device} ({processes}{environment.precision})"
