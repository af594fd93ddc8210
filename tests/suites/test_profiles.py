"""Stored profiles: files of version 1, and their folder, are read."""

import json
from pathlib import Path

import pytest

from peftlab.suites.profiles import ProfileStore, profile_digest
from peftlab.suites.suite_file import load_suite
from tests.suites.tiny import write_suite

COMMITTED = sorted((Path(__file__).parents[2] / "benchmarks").glob("*/profiles"))


def test_a_profile_of_version_1_is_read_from_its_old_folder(tmp_path: Path) -> None:
    suite = load_suite(write_suite(tmp_path))
    recipe = suite.example(next(suite.rows()))
    old = {"version": 1, "state": "failed", "reason": "r", "ledger": None, "recipe": recipe.model_dump(mode="json")}
    (tmp_path / "ledgers").mkdir()
    (tmp_path / "ledgers" / "x.json").write_text(json.dumps(old))
    store = ProfileStore(tmp_path)
    stored = store.records()[profile_digest(recipe)]
    assert (stored.record.version, stored.record.state, stored.record.profile) == (2, "failed", None)
    store.write(recipe, stored.record)  # in the new folder, in place of the old file
    assert not list((tmp_path / "ledgers").iterdir())
    assert [stored.path.parent.name for stored in store.records().values()] == ["profiles"]


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.parent.name)
def test_committed_profiles_load(folder: Path) -> None:
    records = ProfileStore(folder.parent).records()
    assert len(records) == len(list(folder.glob("*.json")))
    assert any(stored.record.profile is not None for stored in records.values())
