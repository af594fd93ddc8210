"""The recipe: what to train, on what, how, as a YAML file says it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, PrivateAttr, ValidationError

from peftlab.component import Settings
from peftlab.data import AnyData, Data
from peftlab.data.data import SPLITS
from peftlab.data.examples import Splits
from peftlab.errors import UserError, nearest, printable
from peftlab.methods import AnyMethod
from peftlab.methods.method import MethodContext
from peftlab.models.model import AnyModel
from peftlab.quantization import AnyQuantization
from peftlab.quantization.none import NoQuantization
from peftlab.recipe.digest import DefaultKey, changed_defaults, completed, digest, with_null_defaults
from peftlab.recipe.errors import bad_input
from peftlab.recipe.replay import Replay
from peftlab.recipe.yaml_reader import Document, Key, read_scalar, read_yaml
from peftlab.tasks import AnyTask
from peftlab.training.settings import AnySeeds, Seeds, Training

NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"


class Recipe(Settings):
    """One run, every default filled in. Two recipes with the same digest are the same run."""

    name: str = Field(pattern=NAME, examples=["lora-ner"])
    """Name of the run and of its folder. Default: the name of the file without `.yaml`."""
    description: str = Field("", examples=["LoRA on my own data"])
    """One line about the recipe, printed by `peftlab list`."""
    model: AnyModel = Field(examples=["sentence-transformers/all-MiniLM-L6-v2"])
    """Base model: a Hub id or a folder; as a mapping also its revision."""
    task: AnyTask = Field(examples=["token_classification"])
    """Task family: its kind, or a mapping with its settings."""
    data: AnyData = Field(examples=[{"train": "mine.jsonl"}])
    """Data: a Hub id, or a mapping with the user's own files or more settings."""
    replay: Replay | None = Field(None, examples=[{"share": 0.2, "data": {"train": "old.jsonl"}}])
    """Older data to train on as well, so that the model does not forget it."""
    method: AnyMethod = Field(examples=[{"kind": "lora", "rank": 8}])
    """Fine-tuning method: its kind, or a mapping with its settings."""
    quantization: AnyQuantization = Field(NoQuantization(), examples=["nf4"])
    """Quantization of the frozen base model."""
    training: Training = Field(Training(), examples=[{"epochs": 3, "learning_rate": 1e-4}])
    """Length, batches, optimizer and checkpoints of the training."""
    seeds: AnySeeds = Field(Seeds(), examples=[1])
    """One seed for all sources of randomness, or a mapping with a seed for each."""
    score_test: bool = True
    """Evaluate on the test split at the end. False for trials, which choose settings on the validation split."""

    _null_in_record: frozenset[DefaultKey] = PrivateAttr(frozenset())

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_record` returned, now or in an earlier version. Raises pydantic's ValidationError.

        A key that is null or missing keeps the meaning that it had then, whatever the default is today.
        """
        recipe = cls.model_validate_json(json.dumps(completed(cls, values)))
        updates: dict[str, dict[str, Any]] = {}
        for (section, name), value in changed_defaults(recipe.model_dump(mode="json"), recipe._defaults()).items():
            updates.setdefault(section, {})[name] = value
        recipe = recipe.model_copy(
            update={section: getattr(recipe, section).model_copy(update=update) for section, update in updates.items()}
        )
        recipe._null_in_record = frozenset((section, name) for section in updates for name in updates[section])
        return recipe

    def to_record(self) -> dict[str, Any]:
        """The recipe as results store it: JSON values of every key, which mean the same to later versions."""
        return with_null_defaults(self.model_dump(mode="json"), self._defaults(), self._null_in_record)

    def _defaults(self) -> dict[DefaultKey, Any]:
        """The values that the code chooses where these keys are null."""
        training = self.training
        defaults: dict[DefaultKey, Any] = {("training", "learning_rate"): self.method.learning_rate}
        if training.steps is None:
            defaults["training", "epochs"] = training.passes
        if training.batch_examples is None:
            defaults["training", "batch_tokens"] = training.batch["tokens"]
        if "select_by" in type(self.task).model_fields:
            defaults["task", "select_by"] = self.task.selection
        return defaults

    @property
    def digest(self) -> str:
        """12 hexadecimal digits that name everything that shapes the result (see recipe/digest.py)."""
        return digest(self, self.to_record())

    @property
    def learning_rate(self) -> float:
        """The recipe's, or else the method's own."""
        given = self.training.learning_rate
        return self.method.learning_rate if given is None else given

    def rows(self) -> Splits:
        """All rows, checked; the old ones that are replayed under "replay". Raises UserError if some are bad."""

        def load(data: Data) -> Splits:
            task = self.task
            return data.load(
                task.fields,
                task.optional_fields,
                check=task.check_row,
                visible=task.visible_fields,
                scored=SPLITS if self.score_test else SPLITS[:2],
            )

        new = load(self.data)
        if self.replay is None:
            return new
        return self.replay.mixed(
            new, load(self.replay.data), self.task.visible_fields or (*self.task.fields, *self.task.optional_fields)
        )

    def incompatible_with(
        self,
        architecture: str | None,
        *,
        sharded: bool = False,
        zero: int | None = None,
        spread: bool = False,
    ) -> str | None:
        """Why this combination cannot run, as far as can be told before anything loads."""
        if sharded and (storage := self.quantization.incompatible_with_sharding()) is not None:
            return storage
        reason = self.method.incompatible_with(
            MethodContext(
                architecture=architecture,
                quantization=self.quantization.kind,
                task_type=self.task.task_type,
                gradient_checkpointing=self.training.gradient_checkpointing,
                packed=self.task.packs,
                sharded=sharded,
                zero_stage=zero,
                dispatched=spread,
            )
        )
        if reason is None and self.training.layer_decay is not None and self.method.positions:
            return "training.layer_decay: virtual tokens are in no layer; leave it out"
        return reason


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe; `overrides` are `key.subkey=value`. Raises UserError, one line a mistake."""
    try:
        exists = path.exists()
    except OSError as error:  # e.g. a name of thousands of characters
        raise UserError(f"{str(path)[:60]}: no such recipe: {error.strerror}") from None
    if not exists:
        raise UserError(_no_such_file(path))
    document = read_yaml(path)
    values, lines = document.values, dict(document.lines)
    if "name" not in values and not re.fullmatch(NAME, path.stem):
        raise UserError(f"{path}:1: name: missing, and the file's own, {path.stem!r}, does not match {NAME}")
    values.setdefault("name", path.stem)
    given = [_override(values, override) for override in overrides]
    try:
        recipe = Recipe.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise bad_input(error, Recipe, path, Document(values, lines), given) from None
    reason = recipe.incompatible_with(recipe.model.known_architecture())
    if reason is not None:
        raise UserError(f"{path}:{lines.get(('method',), 1)}: method: {reason}")
    return recipe


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe file, for editors."""
    schema = Recipe.model_json_schema(mode="validation")
    schema["required"] = [key for key in schema["required"] if key != "name"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "peftlab recipe"}


def _no_such_file(path: Path) -> str:
    near = nearest(path.stem, (p.stem for p in path.parent.glob("*.yaml"))) if path.parent.is_dir() else ""
    return f"{path}: no such recipe{near}"


def _override(values: dict[str, Any], override: str) -> Key:
    """Put `a.b=value` into `values`; return the key."""
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise UserError(f"--set {printable(override)}: key=value was expected, e.g. method.rank=8")
    *parents, last = name.split(".")
    inner = values
    for parent in parents:
        below = inner.get(parent)
        if isinstance(below, str):  # the short form of a part, `method: lora`
            below = {"id" if parent in ("model", "data") else "kind": below}
        elif below is None:
            below = {}
        elif not isinstance(below, dict):
            raise UserError(f"--set {printable(override)}: {parent!r} is {below!r}, which has no keys")
        inner[parent] = inner = below
    if last == "kind":
        inner.clear()  # another part: the keys of the one in the file are not its own
    try:
        inner[last] = read_scalar(text)
    except ValueError as error:
        raise UserError(f"--set {printable(override)}: {error}") from None
    return (*parents, last)
