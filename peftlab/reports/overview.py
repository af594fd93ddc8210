"""What recipes give: a Markdown table of their results, one run each. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peftlab.errors import UserError
from peftlab.recipe import Recipe, load_recipe
from peftlab.reports.columns import percent, size
from peftlab.results.run_result import Environment, RunResult, is_finished, read_result, result_folder

DASH = "–"
HEADING = (
    "# What the recipes give",
    "",
    "Written by `make recipes`; do not edit. One run each: the seed's luck is in it. *One answer always* is the most",
    "frequent one of train, or its mean; *base untouched* the base before any training, if its head is its own, on",
    "test. Tokens are those trained on in a second, without padding; the machine may have had other work. A dash was",
    "not measured. A row such as *adapter-ner `quantization=nf4`* is",
    '`make recipe name=adapter-ner set="quantization=nf4"`.',
    "",
)
COLUMNS = (
    "recipe",
    "metric",
    "one answer always",
    "base untouched",
    "validation",
    "test",
    "trainable",
    "share",
    "saved",
    "training",
    "tokens/s",
    "threads",
)


def overview(paths: Sequence[Path], results: Path, variants: Sequence[str] = ()) -> str:
    """Markdown table with one row per recipe file, in the order given, each followed by its variants.

    A variant is the name of a recipe and an override, e.g. "adapter-ner quantization=nf4".
    Raises UserError if there is no result at all or a variant names none of the recipes.
    """
    overrides: dict[str, list[str]] = {}
    for variant in variants:
        name, _, override = variant.partition(" ")
        overrides.setdefault(name, []).append(override)
    rows = []
    for path in paths:
        recipe = load_recipe(path)
        rows.append((recipe.name, recipe))
        for override in overrides.pop(recipe.name, ()):
            rows.append((f"{recipe.name} `{override}`", load_recipe(path, [override])))
    if overrides:
        raise UserError(f"--variant {next(iter(overrides))}: no recipe of this name is given")
    found = [_result(recipe, results) for _, recipe in rows]
    if not any(found):
        raise UserError(f"{results}: no result of these {len(rows)} recipes; `peftlab run FILE --output {results}`")
    rule = "|---|---|" + "---:|" * (len(COLUMNS) - 2)
    table = [
        f"| {' | '.join([label, *_cells(recipe, result)])} |"
        for (label, recipe), result in zip(rows, found, strict=True)
    ]
    return "\n".join([*HEADING, f"| {' | '.join(COLUMNS)} |", rule, *table, "", *_ground(found), ""])


def _result(recipe: Recipe, results: Path) -> RunResult | None:
    folder = result_folder(results, recipe.name, recipe.digest)
    return read_result(folder) if is_finished(folder) else None


def _cells(recipe: Recipe, result: RunResult | None) -> list[str]:
    if result is None:
        return [recipe.task.selection] + [DASH] * (len(COLUMNS) - 2)
    metric = result.selection
    last = "test" if "test" in result.metrics else "validation"

    def score(scores: dict[str, dict[str, float]], split: str) -> str:
        value = scores.get(split, {}).get(metric)
        return DASH if value is None else f"{value:.4f}"

    return [
        f"{metric} (smaller is better)" if result.selection_minimized else metric,
        score(result.constant_baseline, last),
        score(result.base_model, last),
        score(result.metrics, "validation"),
        score(result.metrics, "test"),
        f"{result.parameters.trainable:,}",
        percent(result.parameters.trainable_fraction),
        size(result.cost.adapter_bytes),
        f"{result.cost.train_seconds:,.0f} s",
        f"{result.cost.tokens_per_second:,.0f}",
        f"{result.environment.hardware.threads}",
    ]


def _ground(found: Sequence[RunResult | None]) -> list[str]:
    """What the runs ran on, each kind of it once."""
    kinds = dict.fromkeys(_machine(result.environment) for result in found if result is not None)
    return [f"On {'; on '.join(kinds)}."]


def _machine(environment: Environment) -> str:
    hardware = environment.hardware
    where = ", ".join(hardware.accelerators) or hardware.processor
    processes = "" if environment.processes == 1 else f"{environment.processes} processes, "
    return f"{where} ({processes}{environment.precision})"
