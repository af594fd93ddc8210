"""`find_run`: the run that a user means."""

import os
from pathlib import Path

import pytest

from peftlab.cli.find_run import find_run
from peftlab.errors import UserError
from peftlab.recipe import load_recipe
from tests.conftest import RECIPE


def run(folder: Path, age: int = 0) -> Path:
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "peftlab.json").write_text("{}")
    os.utime(folder, (1000 - age, 1000 - age))
    return folder


def test_the_one_run_in_a_folder_is_found(tmp_path: Path) -> None:
    only = run(tmp_path / "runs" / "mine" / "abc")
    run(tmp_path / "runs" / "mine" / "abd.part")
    for given in (tmp_path / "runs", tmp_path / "runs" / "mine", only):
        assert find_run(given) == only
    assert find_run(tmp_path / "nowhere") == tmp_path / "nowhere"


def test_of_several_runs_the_newest_are_named(tmp_path: Path) -> None:
    new, old = run(tmp_path / "mine" / "b"), run(tmp_path / "mine" / "c", age=100)
    with pytest.raises(UserError, match=f"holds 2 runs; name one of them, e.g. the newest, the last of: {old}, {new}"):
        find_run(tmp_path)


def test_a_recipe_leads_to_its_run(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    with pytest.raises(UserError, match=f"not trained yet .*: peftlab run {path}"):
        find_run(path, tmp_path / "runs")
    folder = run(tmp_path / "runs" / "mine" / load_recipe(path).digest)
    assert find_run(path, tmp_path / "runs") == folder
