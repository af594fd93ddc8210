"""Suites: one clear line for each mistake, equal trials for each method, and which run is which cell."""

import subprocess
import sys
from pathlib import Path

import pytest

from peftlab.errors import UserError
from peftlab.suites.plan import make_plan
from peftlab.suites.profiles import ProfileRecord, ProfileStore, profile_digest
from peftlab.suites.store import Record, Store
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


def complaint(folder: Path, old: str, new: str) -> str:
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
    from peftlab.recipe import load_recipe

    (tmp_path / "mine.yaml").write_text(
        "model: sentence-transformers/all-MiniLM-L6-v2\ntask: token_classification\n"
        "data: {id: datamade/usaddress, columns: {labels: ner_tags}}\nmethod: {kind: lora, rank: 8}\n"
        "quantization: nf4\ntraining: {epochs: 1, batch_tokens: 256, learning_rate: 3.33e-4}\nseeds: 2\n"
    )
    row = Row("addresses", "lora", "nf4")
    cell = suite(tmp_path).recipe(row, learning_rate=3.33e-4, seed=2, trial=False)
    assert cell.digest == load_recipe(tmp_path / "mine.yaml").digest
    assert cell.name == "addresses-lora-nf4"


def test_a_task_takes_the_suites_settings_but_for_its_own(tmp_path: Path) -> None:
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
    ("old", "new", "says"),
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
        ("[none, nf4]", "[none, nf5]", "suite.yaml:6: quantizations.1: unknown kind 'nf5' (did you mean 'nf4'?)"),
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
def test_a_mistake_is_one_line_with_file_line_and_key(tmp_path: Path, old: str, new: str, says: str) -> None:
    text = complaint(tmp_path, old, new)
    assert says in text
    assert len(text.splitlines()) == 1


def test_a_misspelt_suite_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    with pytest.raises(UserError, match=r"mien: no such suite \(did you mean 'mine'\?\)"):
        load_suite(tmp_path / "mien")


def rates(loaded: Suite, scores: dict[float, float | None]) -> tuple[list[float], float | None, bool, bool]:
    """What the plan makes of LoRA's trials: the rates it wants, the one it takes, extended, at the edge."""
    row = Row("addresses", "lora", "none")
    known = {loaded.recipe(row, learning_rate=rate, seed=0, trial=True).digest: score for rate, score in scores.items()}
    search = make_plan(loaded, known).searches[row]
    return [trial.learning_rate for trial in search.trials], search.rate, search.extended, search.at_edge


GRID = [0.000333, 0.001, 0.003]


def test_the_grid_is_the_centre_and_a_factor_to_each_side(tmp_path: Path) -> None:
    assert rates(suite(tmp_path), {}) == (GRID, None, False, False)
    assert rates(suite(tmp_path), {GRID[0]: 0.1, GRID[1]: 0.9}) == (GRID, None, False, False)
    assert rates(suite(tmp_path), dict(zip(GRID, [0.5, 0.9, 0.7], strict=True))) == (GRID, 0.001, False, False)


def test_a_winner_at_the_edge_extends_the_grid_once_and_says_so(tmp_path: Path) -> None:
    high = dict(zip(GRID, [0.5, 0.6, 0.7], strict=True))
    assert rates(suite(tmp_path), high) == ([*GRID, 0.009], None, True, False)
    assert rates(suite(tmp_path), {**high, 0.009: 0.6}) == ([*GRID, 0.009], 0.003, True, False)
    assert rates(suite(tmp_path), {**high, 0.009: 0.8}) == ([*GRID, 0.009], 0.009, True, True)
    low = dict(zip(GRID, [0.7, 0.6, 0.5], strict=True))
    assert rates(suite(tmp_path), low)[0] == [0.000111, *GRID]
    twice = suite(tmp_path, GOOD + "trials: {extensions: 2}\n")
    assert rates(twice, {**high, 0.009: 0.8})[0] == [*GRID, 0.009, 0.027]


def test_no_rate_is_tried_twice_where_a_recipe_allows_no_larger_one(tmp_path: Path) -> None:
    highest = suite(tmp_path, GOOD.replace("1e-3", "10.0"))
    assert rates(highest, {})[0] == [3.33, 10.0]
    assert rates(highest, {3.33: 0.5, 10.0: 0.9}) == ([3.33, 10.0], 10.0, False, True)
    smallest = suite(tmp_path, GOOD.replace("1e-3", "1e-307") + "trials: {points: 5, factor: 100}\n")
    assert len(rates(smallest, {})[0]) == 4


def test_a_trial_without_a_score_is_a_trial_and_none_wins_if_none_has_one(tmp_path: Path) -> None:
    assert rates(suite(tmp_path), dict(zip(GRID, [0.5, 0.9, None], strict=True)))[1] == 0.001
    assert rates(suite(tmp_path), dict.fromkeys(GRID))[1:] == (None, False, False)


def test_trials_serve_all_bases_or_each_its_own(tmp_path: Path) -> None:
    shared = make_plan(suite(tmp_path), {})
    assert {row.name for row in shared.searches} == {"addresses-full-none", "addresses-lora-none"}
    each = make_plan(suite(tmp_path, GOOD + "trials: {per_quantization: true}\n"), {})
    assert {row.name for row in each.searches} == {
        "addresses-full-none", "addresses-lora-none", "addresses-lora-nf4"
    }  # fmt: skip
    refused = make_plan(suite(tmp_path, GOOD.replace("[none, nf4]", "[nf4, none]")), {})  # full: not over NF4
    assert {row.name for row in refused.searches} == {"addresses-full-none", "addresses-lora-nf4"}


def test_trials_never_look_at_the_test_split_and_cells_have_other_seeds(tmp_path: Path) -> None:
    loaded = suite(tmp_path)
    assert all(not trial.score_test and trial.seeds.initialization == 0 for trial in make_plan(loaded, {}).recipes)
    done = {trial.digest: 0.5 for trial in make_plan(loaded, {}).recipes}
    done |= {trial.digest: 0.4 for trial in make_plan(loaded, done).recipes}  # the extensions
    cells = [cell for found in make_plan(loaded, done).cells.values() for cell in found]
    assert [cell.seeds.initialization for cell in cells] == [1, 2] * 3
    assert all(cell.score_test for cell in cells)


def test_what_validation_refuses_is_in_the_plan_with_its_reason(tmp_path: Path) -> None:
    refused = make_plan(suite(tmp_path), {}).refused
    assert list(refused) == [Row("addresses", "full", "nf4")]
    assert "full fine-tuning changes the base model's weights" in refused[Row("addresses", "full", "nf4")]


def test_a_run_written_before_a_field_existed_is_still_its_cell(tmp_path: Path) -> None:
    from peftlab.recipe import Recipe

    cell = suite(tmp_path).recipe(Row("addresses", "lora", "nf4"), learning_rate=1e-3, seed=1, trial=False)
    old = cell.model_dump(mode="json")
    del old["training"]["precision"], old["method"]["weight_decomposed"]
    assert Recipe.from_record({**old, "name": "another"}).digest == cell.digest


def test_a_profile_is_of_a_row_whatever_its_rate_and_seeds(tmp_path: Path) -> None:
    loaded = suite(tmp_path)
    row = Row("addresses", "lora", "none")
    digests = {
        profile_digest(loaded.recipe(row, learning_rate=rate, seed=seed, trial=trial))
        for rate, seed, trial in ((1e-3, 1, False), (3e-3, 2, False), (1e-3, 0, True))
    }
    assert len(digests) == 1
    other = loaded.recipe(Row("addresses", "lora", "nf4"), learning_rate=1e-3, seed=1, trial=False)
    larger = suite(tmp_path, GOOD.replace("rank: 8", "rank: 9")).recipe(row, learning_rate=1e-3, seed=1, trial=False)
    assert not digests & {profile_digest(other), profile_digest(larger)}


def test_a_profile_in_two_files_and_a_damaged_one_are_one_line(tmp_path: Path) -> None:
    recipe = suite(tmp_path).recipe(Row("addresses", "lora", "none"), learning_rate=1e-3, seed=1, trial=False)
    profiles = ProfileStore(tmp_path / "mine")
    record = ProfileRecord(state="timed out", reason="r", recipe=recipe.model_dump(mode="json"))
    path = profiles.write(recipe, record)
    assert profiles.records()[profile_digest(recipe)].record == record
    assert [other.name for other in path.parent.iterdir()] == [f"addresses-lora-none-{profile_digest(recipe)}.json"]
    path.rename(path.with_name("addresses-lora-none-0123456789ab.json"))  # what its digest was with older settings
    assert profiles.write(recipe, record) == path
    assert list(path.parent.iterdir()) == [path]
    path.with_name("zz.json").write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=r"zz.json: another profile of the same row as addresses-.*; remove one"):
        profiles.records()
    for damage, says in (
        ("{}", "not a profile of version 1 or 2: state"),
        (record.model_dump_json(), "expected a profile, or"),
    ):
        path.with_name("zz.json").write_text(damage.replace("timed out", "done"))
        with pytest.raises(UserError, match=f"zz.json: {says}"):
            profiles.records()


@pytest.mark.slow
def test_a_dry_run_forecasts_the_memory_of_what_was_never_run_and_else_needs_no_torch(tmp_path: Path) -> None:
    folder = write(tmp_path, GOOD + "trials: {points: 1}\n")
    loaded = load_suite(folder)

    def ran(*rows: Row) -> None:
        for row in rows:
            recipe = loaded.recipe(row, learning_rate=loaded.base_learning_rate(row), seed=1, trial=False)
            values = recipe.model_dump(mode="json")
            Store(folder).write(recipe, Record(state="failed", reason="r", recipe=values, peak_rss_bytes=2**30), None)

    def shown() -> tuple[dict[str, str], bool]:
        """What is said of each row, and whether torch was imported."""
        code = (
            f"import sys; from pathlib import Path; from peftlab.cli.bench import bench; "
            f"bench(Path({str(folder)!r}), dry_run=True); print('torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        return {line.split()[0]: line for line in lines if line.startswith("addresses-")}, lines[-1] == "True"

    ran(Row("addresses", "full", "none"), Row("addresses", "lora", "none"))
    found, imported = shown()
    assert imported
    assert found["addresses-lora-none"].endswith(" 1024 MiB")
    assert found["addresses-lora-nf4"].endswith(" MiB predicted")
    assert 30 < float(found["addresses-lora-nf4"].split()[-3]) < 1024  # the embeddings alone are 45 MiB
    ran(Row("addresses", "lora", "nf4"))
    assert not shown()[1]
