"""Stored profiles: one file per row; files of version 1, and their folder, are read."""

import json
from pathlib import Path

import pytest

from peftlab.errors import UserError
from peftlab.suites.profiles import ProfileRecord, ProfileStore, profile_digest
from peftlab.suites.suite import Row
from peftlab.suites.suite_file import load_suite
from tests.suites.tiny import COMPARISON, write_suite

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


def test_a_row_has_one_profile_for_all_learning_rates_and_seeds(tmp_path: Path) -> None:
    loaded = load_suite(write_suite(tmp_path, **COMPARISON))
    row = Row("addresses", "lora", "none")
    digests = {
        profile_digest(loaded.recipe(row, learning_rate=rate, seed=seed, trial=trial))
        for rate, seed, trial in ((1e-3, 1, False), (3e-3, 2, False), (1e-3, 0, True))
    }
    assert len(digests) == 1
    other = loaded.recipe(Row("addresses", "lora", "nf4"), learning_rate=1e-3, seed=1, trial=False)
    lora = {"method": {"kind": "lora", "rank": 9}, "learning_rate": 1e-3}
    larger = load_suite(write_suite(tmp_path, methods={"lora": lora})).example(row)
    assert not digests & {profile_digest(other), profile_digest(larger)}


def test_a_repeated_and_a_damaged_profile_are_one_line(tmp_path: Path) -> None:
    recipe = load_suite(write_suite(tmp_path)).example(Row("addresses", "lora", "none"))
    profiles = ProfileStore(tmp_path)
    record = ProfileRecord(state="timed out", reason="r", recipe=recipe.model_dump(mode="json"))
    path = profiles.write(recipe, record)
    assert profiles.records()[profile_digest(recipe)].record == record
    assert [other.name for other in path.parent.iterdir()] == [f"addresses-lora-none-{profile_digest(recipe)}.json"]
    path.rename(path.with_name("addresses-lora-none-0123456789ab.json"))  # its digest before a setting was added
    assert profiles.write(recipe, record) == path
    assert list(path.parent.iterdir()) == [path]
    path.with_name("zz.json").write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=r"zz.json: another profile of the same row as addresses-.*; remove one"):
        profiles.records()
    for damage, message in (
        ("{}", "not a profile of version 1 or 2: state"),
        (record.model_dump_json(), "expected a profile, or"),
    ):
        path.with_name("zz.json").write_text(damage.replace("timed out", "done"))
        with pytest.raises(UserError, match=f"zz.json: {message}"):
            profiles.records()
