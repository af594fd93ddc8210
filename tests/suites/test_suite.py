"""suite.yaml: one line per mistake, and the recipe of each cell."""

from pathlib import Path

import pytest

from peftlab.errors import UserError
from peftlab.recipe import Recipe, load_recipe
from peftlab.suites.plan import make_plan
from peftlab.suites.suite import Row, Suite
from peftlab.suites.suite_file import load_suite

SUITES = sorted((Path(__file__).parents[2] / "benchmarks").glob("*/suite.yaml"))
GOOD = """\
seeds: [1, 2]
model: sentence-transformers/all-MiniLM-L6-v2
task: token_classification
data: {id: datamade/usaddress, columns: {labels: ner_tags}}
training: {epochs: 1, batch_tokens: 256}
quantizations: [none, nf4]
tasks:
  addresses: {}
methods:
  full: {method: full, learning_rate: 1e-4}
  lora: {method: {kind: lora, rank: 8}, learning_rate: 1e-3}
"""


def write(folder: Path, text: str) -> Path:
    (folder / "mine").mkdir(exist_ok=True)
    (folder / "mine" / "suite.yaml").write_text(text)
    return folder / "mine"


def suite(folder: Path, text: str = GOOD) -> Suite:
    return load_suite(write(folder, text))


def error_of(folder: Path, old: str, new: str) -> str:
    assert old in GOOD
    with pytest.raises(UserError) as caught:
        load_suite(write(folder, GOOD.replace(old, new)))
    return str(caught.value).replace(f"{folder}/mine/", "")


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.parent.name)
def test_a_shipped_suite_is_valid_and_described(path: Path) -> None:
    shipped = load_suite(path.parent)
    assert shipped.name == path.parent.name
    assert shipped.description
    assert make_plan(shipped, {}).recipes


def test_a_cell_is_the_recipe_a_person_would_write(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "model: sentence-transformers/all-MiniLM-L6-v2\ntask: token_classification\n"
        "data: {id: datamade/usaddress, columns: {labels: ner_tags}}\nmethod: {kind: lora, rank: 8}\n"
        "quantization: nf4\ntraining: {epochs: 1, batch_tokens: 256, learning_rate: 3.33e-4}\nseeds: 2\n"
    )
    row = Row("addresses", "lora", "nf4")
    cell = suite(tmp_path).recipe(row, learning_rate=3.33e-4, seed=2, trial=False)
    assert cell.digest == load_recipe(tmp_path / "mine.yaml").digest
    assert cell.name == "addresses-lora-nf4"


def test_a_task_inherits_the_suites_settings_and_overrides_some(tmp_path: Path) -> None:
    text = GOOD.replace(
        "addresses: {}", "addresses: {training: {epochs: 3}, learning_rates: {lora: 2e-3}, data: other/data}"
    )
    loaded = suite(tmp_path, text)
    row = Row("addresses", "lora", "none")
    cell = loaded.recipe(row, learning_rate=1e-3, seed=1, trial=False)
    assert (cell.training.epochs, cell.training.batch_tokens) == (3, 256)
    assert cell.data.model_dump()["id"] == "other/data"
    assert (loaded.base_learning_rate(row), loaded.base_learning_rate(Row("addresses", "full", "none"))) == (2e-3, 1e-4)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rank: 8", "rnak: 8", "suite.yaml:11: methods.lora.method.rnak: unknown key (did you mean 'rank'?)"),
        ("kind: lora", "kind: lorra", "suite.yaml:11: methods.lora.method.kind: unknown kind 'lorra' (did you mean 'l"),
        ("training:", "trainin:", "suite.yaml:5: trainin: unknown key (did you mean 'training'?); known are name, "),
        ("[1, 2]", "[1, x]", "suite.yaml:1: seeds.1: input should be a valid integer, found \"x\""),
        ("[1, 2]", "yes", 'suite.yaml:1: seeds: a list of whole numbers was expected, found "yes"'),
        ("addresses: {}", "addresses: 3", "suite.yaml:8: tasks.addresses: a mapping (model, task, data, training, ..."),
        ("[1, 2]", "[1, 1]", "suite.yaml:1: suite: seeds: 1 is listed twice"),
        ("[1, 2]", "[0, 1]", "trials.seed: 0 is one of the suite's seeds"),
        ("epochs: 1", "epochs: -1", "suite.yaml:5: training.epochs: input should be greater than 0, found -1"),
        ("[none, nf4]", "[none, nff4]", "suite.yaml:6: quantizations.1: unknown kind 'nff4' (did you mean 'nf4'?)"),
        ("addresses: {}", "addresses: {learning_rates: {lroa: 1e-3}}", "'lroa' is none of full, lora (did you mean 'l"),
        ("addresses: {}", "addresses: {data: {id: x, colums: {}}}", "suite.yaml:8: tasks.addresses.data.colums: unkn"),
        ("lora: {method", "LORA!: {method", "suite.yaml:11: methods.LORA!: string should match pattern"),
        ("method: full", "quantizations: [], method: full", "suite.yaml:10: methods.full.quantizations: list shou"),
        ("1e-3", "-1", "suite.yaml:11: methods.lora.learning_rate: input should be greater than 0, found -1"),
        ("task: token_classification\n", "", "suite.yaml:1: suite: tasks.addresses: has no task, nor has the suite"),
        ("  full:", "  ful:", "reference: 'full' is none of ful, lora (did you mean 'ful'?)"),
        ("seeds: [1, 2]\n", "", "suite.yaml:1: seeds: missing"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_file_line_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = error_of(tmp_path, old, new)
    assert message in text
    assert len(text.splitlines()) == 1


def test_a_misspelled_suite_suggests_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    with pytest.raises(UserError, match=r"mien: no such suite \(did you mean 'mine'\?\)"):
        load_suite(tmp_path / "mien")


def test_a_record_without_a_later_setting_is_still_of_its_cell(tmp_path: Path) -> None:
    cell = suite(tmp_path).recipe(Row("addresses", "lora", "nf4"), learning_rate=1e-3, seed=1, trial=False)
    old = cell.model_dump(mode="json")
    del old["training"]["precision"], old["method"]["weight_decomposed"]
    assert Recipe.from_record({**old, "name": "another"}).digest == cell.digest
