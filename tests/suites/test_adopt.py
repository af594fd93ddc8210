"""Adopting: runs made elsewhere become results of a suite if they are among its runs."""

import shutil
from pathlib import Path

import pytest

from peftlab.errors import UserError
from peftlab.runs.run import run
from peftlab.suites.adopt import adopt
from peftlab.suites.store import Record, Store
from peftlab.suites.suite import Row
from peftlab.suites.suite_file import load_suite
from tests.suites.tiny import write_suite


def test_runs_from_elsewhere_are_adopted_if_they_are_cells(tmp_path: Path) -> None:
    folder = write_suite(tmp_path / "tiny")
    recipe = load_suite(folder).recipe(Row("addresses", "head", "none"), learning_rate=1e-2, seed=1, trial=False)
    run(recipe.model_copy(update={"name": "other"}), tmp_path / "runs" / "mine" / "x")
    shutil.copytree(tmp_path / "runs" / "mine" / "x", tmp_path / "runs" / "mine" / "y.part")  # of an unfinished run
    run(recipe.model_copy(update={"score_test": False}), tmp_path / "runs" / "not-a-cell")
    messages: list[str] = []
    assert adopt(folder, tmp_path / "runs", messages.append) == 1
    assert messages[-1].startswith("1 adopted; 1 others below")
    (stored,) = Store(folder).records().values()
    assert stored.recipe.digest == recipe.digest
    assert stored.predictions().statistics["test"][0].score == "entity_f1"
    assert adopt(folder, tmp_path / "runs", messages.append) == 0
    failed = Record(state="failed", reason="no disk", recipe=recipe.model_dump(mode="json"))
    Store(folder).write(recipe, failed, None)
    assert adopt(folder, tmp_path / "runs", messages.append) == 1
    (stored,) = Store(folder).records().values()
    assert stored.record.state == "done"
    with pytest.raises(UserError, match="no such folder"):
        adopt(folder, tmp_path / "nowhere")
    (path,) = (tmp_path / "runs" / "not-a-cell").glob("result.json")
    path.write_text(path.read_text().replace('"recipe": {', '"recipe": {"unknown": 1,', 1))
    with pytest.raises(UserError, match=r"result\.json: recipe: unknown: "):
        adopt(folder, tmp_path / "runs")
