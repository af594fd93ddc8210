"""Replay: so many old examples among the new ones, drawn by a seed, never those that the new are tested on."""

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
def test_the_share_is_of_all_that_is_trained_on(tmp_path: Path, share: float) -> None:
    found = recipe(tmp_path, share).rows().rows
    assert len(found["replay"]) / (len(found["train"]) + len(found["replay"])) == pytest.approx(share, abs=0.01)


def test_what_the_new_are_tested_on_is_never_replayed(tmp_path: Path) -> None:
    found = recipe(tmp_path, 0.75, split_seed=1).rows().rows  # else the hash would keep them apart by itself
    asked = {row.fields["tokens"][1] for split in ("validation", "test") for row in found[split]}
    replayed = [row.fields["tokens"] for row in found["replay"]]
    assert asked
    assert not [tokens for tokens in replayed if tokens[0] == "new" and tokens[1] in asked]
    assert Counter(tokens[0] for tokens in replayed)["new"] > 0


def test_the_draw_is_of_the_old_datas_seed_and_in_the_fingerprint(tmp_path: Path) -> None:
    first, again = recipe(tmp_path).rows(), recipe(tmp_path).rows()
    other = recipe(tmp_path, split_seed=1).rows()
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.rows["train"] == other.rows["train"]


def test_few_old_examples_are_all_that_is_replayed(tmp_path: Path) -> None:
    assert 0 < len(recipe(tmp_path, 0.9, old=0).rows().rows["replay"]) < 100


def test_a_run_trains_on_both_and_says_so(tmp_path: Path) -> None:
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
