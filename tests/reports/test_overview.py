"""Overview of recipes: one row per recipe, with the numbers of its result or dashes."""

import shutil
from pathlib import Path

import pytest

from peftlab.errors import UserError
from peftlab.recipe import load_recipe
from peftlab.reports.formatting import DASH
from peftlab.reports.overview import overview
from peftlab.results.result_file import read_result, result_folder, write_result
from peftlab.results.run_result import RunResult
from peftlab.runs.find_run import find_run

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
FILES = [ROOT / "recipes" / f"{name}.yaml" for name in ("lora-custom-data", "lora-ner")]
VARIANTS = [  # as `make recipes` has them
    f"{name} quantization={kind}" for name in ("adalora-ner", "adapter-ner", "prefix-ner") for kind in ("int8", "nf4")
]
RESULTS = ROOT / "benchmarks" / "recipes"


def cells(table: str, name: str) -> dict[str, str]:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "|" in line]
    return dict(zip(lines[0], next(line for line in lines if line[0] == name), strict=True))


@pytest.fixture
def result() -> RunResult:
    recipe = load_recipe(ROOT / "recipes" / "lora-custom-data.yaml")
    return read_result(find_run(RESULTS, recipe))


def test_a_row_has_the_numbers_of_the_result(result: RunResult, tmp_path: Path) -> None:
    folder = result_folder(tmp_path, "lora-custom-data", result.digest)
    folder.mkdir(parents=True)
    write_result(result.model_copy(update={"base_model": {"test": {result.selection: 0.125}}}), folder)
    row = cells(
        overview([ROOT / "recipes" / f"{name}.yaml" for name in ("lora-custom-data", "lora-ner")], tmp_path),
        "lora-custom-data",
    )
    assert row["test"] == f"{result.metrics['test'][result.selection]:.4f}"
    assert row["validation"] == f"{result.metrics['validation'][result.selection]:.4f}"
    assert row["base model"] == "0.1250"
    assert row["trainable parameters"] == f"{result.parameters.trainable:,}"


def test_a_recipe_without_result_is_a_row_of_dashes_and_no_result_at_all_is_an_error(
    result: RunResult, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no result of these 2 recipes"):
        overview(FILES, tmp_path)
    folder = result_folder(tmp_path, "lora-custom-data", result.digest)
    shutil.copytree(result_folder(RESULTS, "lora-custom-data", result.digest), folder)
    row = cells(overview(FILES, tmp_path), "lora-ner")
    assert set(list(row.values())[2:]) == {DASH}


def test_a_variant_gets_a_row_with_the_result_of_its_override() -> None:
    file = ROOT / "recipes" / "adapter-ner.yaml"
    table = overview([file], RESULTS, ["adapter-ner quantization=nf4"])
    digest = load_recipe(file, ["quantization=nf4"]).digest
    result = read_result(result_folder(RESULTS, "adapter-ner", digest))
    assert cells(table, "adapter-ner `quantization=nf4`")["test"] == f"{result.metrics['test'][result.selection]:.4f}"


def test_a_variant_of_a_recipe_that_is_not_given_is_refused() -> None:
    with pytest.raises(UserError, match="--variant lora-nre: no recipe of this name is given"):
        overview(FILES, RESULTS, ["lora-nre quantization=nf4"])


def test_the_committed_overview_is_what_the_committed_results_give() -> None:
    assert overview(RECIPES, RESULTS, VARIANTS) == (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
