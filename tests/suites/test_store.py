"""The store: one file per run; what cannot be read is one line."""

import shutil
from pathlib import Path

import pytest

from peftlab.errors import UserError
from peftlab.suites.plan import make_plan
from peftlab.suites.store import Record, Store
from peftlab.suites.suite_file import load_suite
from tests.suites.tiny import write_suite


def test_two_files_of_one_run_are_refused(tmp_path: Path) -> None:
    recipe = make_plan(load_suite(write_suite(tmp_path / "tiny")), {}).recipes[0]
    record = Record(state="timed out", reason="r", recipe=recipe.model_dump(mode="json"), seconds=1.5)
    Store(tmp_path).write(recipe, record, None)
    (path,) = (tmp_path / "results").glob("*.json")
    shutil.copy(path, path.with_name("zz.json"))
    with pytest.raises(UserError, match=r"zz.json: another result of the same run as .*; remove one"):
        Store(tmp_path).records()


@pytest.mark.parametrize("damage", ["{}", "nothing", '{"version": 1, "state": "done"}'])
def test_a_damaged_record_is_one_line(tmp_path: Path, damage: str) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "x.json").write_text(damage)
    with pytest.raises(UserError, match=r"x.json: "):
        Store(tmp_path).records()


def test_a_record_without_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    recipe = make_plan(load_suite(write_suite(tmp_path / "tiny")), {}).recipes[0]
    record = Record(state="timed out", reason="r", recipe=recipe.model_dump(mode="json"), seconds=1.5)
    Store(tmp_path).write(recipe, record, None)
    assert Store(tmp_path).records()[recipe.digest].record == record
