"""Digests: the same for every stored record, whatever defaults and keys the code has today."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from peftlab.methods.lora import Lora
from peftlab.recipe import Recipe
from peftlab.tasks.sequence_classification import SequenceClassification
from peftlab.training.settings import Training

ROOT = Path(__file__).parents[2]
PINNED = Path(__file__).with_name("digests.json")
GIVEN = {
    "name": "mine",
    "model": {"id": "sentence-transformers/all-MiniLM-L6-v2"},
    "task": {"kind": "sequence_classification"},
    "data": {"kind": "files", "train": "mine.jsonl"},
    "method": {"kind": "lora"},
}


def read(values: dict[str, Any], **sections: dict[str, Any]) -> Recipe:
    return Recipe.model_validate_json(json.dumps({**values, **sections}))


def committed() -> dict[str, dict[str, Any]]:
    """The recipe of every committed result, by the file's path."""
    paths = [*ROOT.glob("benchmarks/*/results/*.json"), *ROOT.glob("benchmarks/recipes/*/*/result.json")]
    records = {path.relative_to(ROOT).as_posix(): json.loads(path.read_text()) for path in sorted(paths)}
    return {name: values.get("recipe") or values["result"]["recipe"] for name, values in records.items()}


def digests() -> dict[str, str]:
    return {name: Recipe.from_record(recipe).digest for name, recipe in committed().items()}


def test_the_digest_of_every_committed_result_is_the_pinned_one() -> None:
    pinned = json.loads(PINNED.read_text())
    current = digests()
    assert {name: digest for name, digest in current.items() if name in pinned and digest != pinned[name]} == {}
    assert current.keys() == pinned.keys(), (
        "run `python -m tests.recipe.test_digest` after results were added or removed"
    )


def test_a_committed_result_is_named_by_its_digest() -> None:
    assert [name for name, digest in digests().items() if digest not in name] == []


@pytest.mark.parametrize(
    ("owner", "name", "value", "key"),
    [
        (Lora, "learning_rate", 9e-4, ("training", "learning_rate")),
        (Training, "passes", property(lambda training: training.epochs or 5.0), ("training", "epochs")),
        (Training, "batch", property(lambda _: {"examples": None, "tokens": 512}), ("training", "batch_tokens")),
        (SequenceClassification, "selection", property(lambda task: task.select_by or "mcc"), ("task", "select_by")),
    ],
)
def test_a_changed_default_moves_the_digest_of_a_recipe_without_the_key_and_of_no_record(
    owner: type, name: str, value: Any, key: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    section, field = key
    record, old = read(GIVEN).to_record(), read(GIVEN).digest
    old_default = {**read(GIVEN)._defaults()}[key]
    given = read(GIVEN, **{section: {**GIVEN.get(section, {}), field: old_default}}).digest  # type: ignore[dict-item]
    assert record[section][field] is None
    monkeypatch.setattr(owner, name, value)

    fresh, stored = read(GIVEN), Recipe.from_record(record)
    assert fresh.digest != old
    assert stored.digest == old
    assert stored.model_dump()[section][field] == old_default
    assert read(GIVEN, **{section: {**GIVEN.get(section, {}), field: old_default}}).digest == given  # type: ignore[dict-item]

    assert stored.to_record() == record
    assert fresh.to_record()[section][field] == fresh._defaults()[key]
    monkeypatch.undo()
    assert Recipe.from_record(fresh.to_record()).digest == fresh.digest


def test_a_setting_changed_after_reading_a_record_moves_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    record = read(GIVEN).to_record()
    monkeypatch.setattr(Lora, "learning_rate", 9e-4)
    stored = Recipe.from_record(record)
    changed = stored.model_copy(update={"training": Training(learning_rate=7e-4)})
    assert changed.digest != stored.digest
    assert changed.to_record()["training"]["learning_rate"] == 7e-4


class LaterTraining(Training):
    """Training with a key that came later, and whose default is not what the code did before."""

    added_fields: ClassVar = {"momentum": 0.9}

    momentum: float = 0.0


class LaterRecipe(Recipe):
    """A recipe with the later key."""

    training: LaterTraining = LaterTraining()


def test_a_key_added_later_moves_no_digest_at_its_old_meaning() -> None:
    today = read(GIVEN)
    later = LaterRecipe.from_record(today.to_record())
    assert later.training.momentum == 0.9
    assert later.digest == today.digest
    assert later.to_record()["training"]["momentum"] == 0.9
    assert LaterRecipe.from_record(later.to_record()) == later

    fresh = LaterRecipe.model_validate_json(json.dumps(GIVEN))
    assert fresh.training.momentum == 0.0
    assert fresh.digest != today.digest


def test_an_early_record_is_read_with_the_values_that_its_missing_keys_had() -> None:
    name, recipe = next((name, recipe) for name, recipe in committed().items() if "replay" not in recipe)
    assert "label_smoothing" not in recipe["task"], name
    read_today = Recipe.from_record(recipe).to_record()
    assert (read_today["replay"], read_today["task"]["label_smoothing"]) == (None, 0.0)
    assert (read_today["data"]["drop_leaks"], read_today["training"]["layer_decay"]) == (False, None)


if __name__ == "__main__":
    PINNED.write_text(json.dumps(digests(), indent=0) + "\n")
