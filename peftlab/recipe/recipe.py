"""Schema of a recipe: what to train, on which data, by which method."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, PrivateAttr

from peftlab.component import ExpandedPath, Settings
from peftlab.data import AnyData, Data
from peftlab.data.data import SPLITS
from peftlab.data.examples import Splits
from peftlab.data.mix import Mix
from peftlab.methods import AnyMethod
from peftlab.methods.method import MethodContext
from peftlab.models.model import AnyModel
from peftlab.quantization import AnyQuantization
from peftlab.quantization.none import NoQuantization
from peftlab.recipe.digest import DefaultKey, changed_defaults, completed, digest, with_null_defaults
from peftlab.recipe.replay import Replay
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
    init_from: ExpandedPath | None = Field(None, examples=["runs/lora-ner"])
    """Start from the adapter of a finished run, of this task or another one: the folder of the run or of its adapter.
    Same base and method; the task head is kept if task and labels are the same. Null: new initial values."""
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
    """Evaluate on the test split at the end. False for trials, which choose settings on the validation split; then
    a recipe file takes no test split from train either, unless it has `data.test_share`."""

    added_fields: ClassVar[Mapping[str, Any]] = {"init_from": None}

    _null_in_record: frozenset[DefaultKey] = PrivateAttr(frozenset())
    _from_record: bool = PrivateAttr(False)

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
        recipe._from_record = True
        recipe._null_in_record = frozenset((section, name) for section in updates for name in updates[section])
        return recipe

    def to_record(self) -> dict[str, Any]:
        """The recipe as results store it: JSON values of every key, which mean the same to later versions."""
        values = with_null_defaults(self.model_dump(mode="json"), self._defaults(), self._null_in_record)
        if not self._from_record:
            _add_fingerprints(values, self.data)
            if self.replay is not None:
                _add_fingerprints(values["replay"], self.replay.data)
        return values

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
    def path_digest(self) -> str:
        """The digest that names local data by their paths, as all digests did before there were fingerprints."""
        return digest(self, _without_fingerprints(self.to_record()))

    @property
    def learning_rate(self) -> float:
        """Peak learning rate: the recipe's, or the method's default."""
        rate = self.training.learning_rate
        return self.method.learning_rate if rate is None else rate

    def rows(self) -> Splits:
        """All checked rows by split; replayed ones are a split named "replay". Raises UserError for bad rows."""

        def load(data: Data) -> Splits:
            task = self.task
            return data.load(
                task.fields,
                task.optional_fields,
                normalize=task.normalize_row,
                check=task.check_row,
                visible=task.visible_fields,
                scored=SPLITS if self.score_test else SPLITS[:2],
            )

        new = load(self.data)
        if self.replay is None:
            return new
        fields = self.task.visible_fields or (*self.task.fields, *self.task.optional_fields)
        return self.replay.mix(new, load(self.replay.data), fields)

    def incompatible_with(
        self,
        architecture: str | None,
        *,
        sharded: bool = False,
        zero_stage: int | None = None,
        dispatched: bool = False,
    ) -> str | None:
        """The reason why this combination cannot run, as far as it is known before anything is loaded, or None."""
        if sharded and (storage := self.quantization.incompatible_with_sharding()) is not None:
            return storage
        optimizer = self.training.optimizer
        if (reason := optimizer.incompatible_with(sharded=sharded, zero_stage=zero_stage)) is not None:
            return reason
        reason = self.method.incompatible_with(
            MethodContext(
                architecture=architecture,
                quantization=self.quantization.kind,
                task_type=self.task.task_type,
                gradient_checkpointing=self.training.gradient_checkpointing,
                packed=self.task.packs,
                sharded=sharded,
                zero_stage=zero_stage,
                dispatched=dispatched,
                averaged=optimizer.averages,
            )
        )
        if reason is None and self.training.layer_decay is not None and self.method.positions:
            return "training.layer_decay: virtual tokens belong to no layer; remove the key"
        return reason


def _add_fingerprints(values: dict[str, Any], data: Data) -> None:
    """Add the fingerprints of the user's files to the record of a recipe's `data`, if it has none."""
    if isinstance(data, Mix):
        values["data"] = {**values["data"], "parts": [dict(part) for part in values["data"]["parts"]]}
        for part, record in zip(data.parts, values["data"]["parts"], strict=True):
            _add_fingerprints(record, part.data)
        return
    found = data.fingerprints or data.content_fingerprints()
    if found:
        values["data"] = {**values["data"], "fingerprints": found}


def _without_fingerprints(record: Any) -> Any:
    if isinstance(record, list):
        return [_without_fingerprints(value) for value in record]
    if not isinstance(record, dict):
        return record
    return {key: _without_fingerprints(value) for key, value in record.items() if key != "fingerprints"}


def recipe_schema() -> dict[str, Any]:
    """JSON schema of a recipe file, for editors."""
    schema = Recipe.model_json_schema(mode="validation")
    schema["required"] = [key for key in schema["required"] if key != "name"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "peftlab recipe"}
