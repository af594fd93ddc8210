"""Replay: a seeded sample of old examples, never those of validation or test."""

import json
from collections import Counter
from pathlib import Path

import pytest

from peftlab.recipe import Recipe, load_recipe
from peftlab.runs.run import run
from tests.conftest import RECIPE


def rows(word: str, count: int) -> str:
    return "".join(json.dumps({"tokens": [word, str(i)], "labels": [f"B-{word}", "O"]}) + "\n" for i in range(count))


def recipe(folder: Path, share: float = 0.2, old: int = 300, **settings: object) -> Recipe:
    (folder / "new.jsonl").write_text(rows("new", 100))
    (folder / "old.jsonl").write_text(rows("old", old) + rows("new", 100))
    (folder / "mine.yaml").write_text(
        RECIPE.partition("data:")[0]
        + json.dumps({"data": {"train": str(folder / "new.jsonl")}})[1:-1]
        + "\n"
        + json.dumps({"replay": {"share": share, "data": {"train": str(folder / "old.jsonl"), **settings}}})[1:-1]
        + "\nmethod: {kind: lora, rank: 4, targets: attention}\n"
        + "training: {steps: 6, evaluate_every: 3, batch_examples: 16, precision: float32}\n"
    )
    return load_recipe(folder / "mine.yaml")


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_the_share_is_a_fraction_of_all_training_examples(tmp_path: Path, share: float) -> None:
    splits = recipe(tmp_path, share).rows().rows
    assert len(splits["replay"]) / (len(splits["train"]) + len(splits["replay"])) == pytest.approx(share, abs=0.01)


def test_rows_of_validation_and_test_are_never_replayed(tmp_path: Path) -> None:
    # With the seed of the new data, the split's hash alone would separate them.
    splits = recipe(tmp_path, 0.75, split_seed=1).rows().rows
    held_out = {row.fields["tokens"][1] for split in ("validation", "test") for row in splits[split]}
    replayed = [row.fields["tokens"] for row in splits["replay"]]
    assert held_out
    assert not [tokens for tokens in replayed if tokens[0] == "new" and tokens[1] in held_out]
    assert Counter(tokens[0] for tokens in replayed)["new"] > 0


def test_the_sample_depends_on_the_old_datas_seed_and_changes_the_fingerprint(tmp_path: Path) -> None:
    first, again = recipe(tmp_path).rows(), recipe(tmp_path).rows()
    other = recipe(tmp_path, split_seed=1).rows()
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.rows["train"] == other.rows["train"]


def test_all_old_examples_are_replayed_if_there_are_too_few(tmp_path: Path) -> None:
    assert 0 < len(recipe(tmp_path, 0.9, old=0).rows().rows["replay"]) < 100


def test_a_run_trains_on_both_and_records_it(tmp_path: Path) -> None:
    result = run(recipe(tmp_path), tmp_path / "out")
    plain = run(
        recipe(tmp_path).model_copy(update={"replay": None}),
        tmp_path / "plain",
    )
    assert result.splits["replay"].examples == round(result.splits["train"].examples / 4)
    assert set(plain.splits) == {"train", "validation", "test"}
    assert result.splits["train"] == plain.splits["train"]
    assert result.data_fingerprint != plain.data_fingerprint
    assert result.curve.losses != plain.curve.losses
