"""The plan: equal trials for each method, and the cells that follow from their scores."""

from pathlib import Path
from typing import Any

from peftlab.suites.plan import make_plan
from peftlab.suites.suite import Row, Suite
from peftlab.suites.suite_file import load_suite
from tests.suites.tiny import COMPARISON, write_suite


def comparison(folder: Path, **keys: Any) -> Suite:
    return load_suite(write_suite(folder, **{**COMPARISON, **keys}))


def lora_at(learning_rate: float) -> dict[str, Any]:
    """The methods of COMPARISON, with another base rate of LoRA."""
    return {**COMPARISON["methods"], "lora": {"method": "lora", "learning_rate": learning_rate}}


def rates(loaded: Suite, scores: dict[float, float | None]) -> tuple[list[float], float | None, bool, bool]:
    """LoRA's search: rates of the trials, the chosen rate, extended, at the edge."""
    row = Row("addresses", "lora", "none")
    by_digest = {
        loaded.recipe(row, learning_rate=rate, seed=0, trial=True).digest: score for rate, score in scores.items()
    }
    search = make_plan(loaded, by_digest).searches[row]
    return [trial.learning_rate for trial in search.trials], search.rate, search.extended, search.at_edge


GRID = [0.000333, 0.001, 0.003]


def test_the_grid_is_the_base_rate_and_a_factor_to_each_side(tmp_path: Path) -> None:
    assert rates(comparison(tmp_path), {}) == (GRID, None, False, False)
    assert rates(comparison(tmp_path), {GRID[0]: 0.1, GRID[1]: 0.9}) == (GRID, None, False, False)
    assert rates(comparison(tmp_path), dict(zip(GRID, [0.5, 0.9, 0.7], strict=True))) == (GRID, 0.001, False, False)


def test_a_best_rate_at_the_edge_extends_the_grid_once(tmp_path: Path) -> None:
    high = dict(zip(GRID, [0.5, 0.6, 0.7], strict=True))
    assert rates(comparison(tmp_path), high) == ([*GRID, 0.009], None, True, False)
    assert rates(comparison(tmp_path), {**high, 0.009: 0.6}) == ([*GRID, 0.009], 0.003, True, False)
    assert rates(comparison(tmp_path), {**high, 0.009: 0.8}) == ([*GRID, 0.009], 0.009, True, True)
    low = dict(zip(GRID, [0.7, 0.6, 0.5], strict=True))
    assert rates(comparison(tmp_path), low)[0] == [0.000111, *GRID]
    twice = comparison(tmp_path, trials={"extensions": 2})
    assert rates(twice, {**high, 0.009: 0.8})[0] == [*GRID, 0.009, 0.027]


def test_no_rate_is_tried_twice_where_a_recipe_allows_no_larger_one(tmp_path: Path) -> None:
    highest = comparison(tmp_path, methods=lora_at(10.0))
    assert rates(highest, {})[0] == [3.33, 10.0]
    assert rates(highest, {3.33: 0.5, 10.0: 0.9}) == ([3.33, 10.0], 10.0, False, True)
    smallest = comparison(tmp_path, methods=lora_at(1e-307), trials={"points": 5, "factor": 100.0})
    assert len(rates(smallest, {})[0]) == 4


def test_a_trial_without_a_score_is_a_trial_and_none_wins_if_none_has_one(tmp_path: Path) -> None:
    assert rates(comparison(tmp_path), dict(zip(GRID, [0.5, 0.9, None], strict=True)))[1] == 0.001
    assert rates(comparison(tmp_path), dict.fromkeys(GRID))[1:] == (None, False, False)


def test_trials_serve_all_quantizations_or_each_its_own(tmp_path: Path) -> None:
    shared = make_plan(comparison(tmp_path), {})
    assert {row.name for row in shared.searches} == {"addresses-full-none", "addresses-lora-none"}
    each = make_plan(comparison(tmp_path, trials={"per_quantization": True}), {})
    assert {row.name for row in each.searches} == {
        "addresses-full-none", "addresses-lora-none", "addresses-lora-nf4"
    }  # fmt: skip
    refused = make_plan(comparison(tmp_path, quantizations=["nf4", "none"]), {})  # full: not over NF4
    assert {row.name for row in refused.searches} == {"addresses-full-none", "addresses-lora-nf4"}


def test_trials_are_never_scored_on_test_and_cells_have_other_seeds(tmp_path: Path) -> None:
    loaded = comparison(tmp_path)
    assert all(not trial.score_test and trial.seeds.initialization == 0 for trial in make_plan(loaded, {}).recipes)
    done = {trial.digest: 0.5 for trial in make_plan(loaded, {}).recipes}
    done |= {trial.digest: 0.4 for trial in make_plan(loaded, done).recipes}  # the extensions
    cells = [cell for row in make_plan(loaded, done).cells.values() for cell in row]
    assert [cell.seeds.initialization for cell in cells] == [1, 2] * 3
    assert all(cell.score_test for cell in cells)


def test_a_refused_row_is_in_the_plan_with_its_reason(tmp_path: Path) -> None:
    refused = make_plan(comparison(tmp_path), {}).refused
    assert list(refused) == [Row("addresses", "full", "nf4")]
    assert "full fine-tuning changes the base model's weights" in refused[Row("addresses", "full", "nf4")]
