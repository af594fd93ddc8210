"""Interface of a task family: the way from rows to examples, loss, answers and scores."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import Field

from peftlab.component import Component
from peftlab.data.examples import Encoded, Example, Row
from peftlab.errors import UserError, nearest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100  # label of a position without a target, as in transformers

Self = TypeVar("Self", bound="Task")


class Task(Component, abc.ABC):
    """Interface that every task family implements.

    A task is one file in this package. The first line of its class docstring says what it is for: `peftlab list` prints
    that line. A task of a recipe is unbound; `bind` returns a copy that knows the labels, and this copy is saved with
    the adapter.

    Obligatory, in the order in which a run calls them:

    - class attributes `kind`, `auto_class`, `task_type`, `fields`
    - rows: `bind`
    - model: `model_settings`
    - examples: `encode`, `collate`
    - training: `loss`
    - answers: `decode`, `answer`
    - scores: `metrics`, `selection`
    - inputs without a data file: `row_from_text`, `sample_rows`

    Everything else has a default, which is documented at its place. Functions that read rows raise UserError, whose
    message begins with `row.where`.
    """

    auto_class: ClassVar[str]
    """Class of transformers that builds base and head, e.g. "AutoModelForTokenClassification"."""
    task_type: ClassVar[str]
    """PEFT's name of the task, e.g. "TOKEN_CLS"."""
    fields: ClassVar[tuple[str, ...]]
    """Fields that every row must have. The last one is the target."""
    optional_fields: ClassVar[tuple[str, ...]] = ()
    """Fields that a row may have in addition."""
    visible_fields: ClassVar[tuple[str, ...]] = ()
    """Those of all fields that the model sees; rows that agree in them are duplicates. Empty: all fields."""
    default_model: ClassVar[str | None] = None
    """Hub id of a small base model for a first recipe."""
    lower_is_better: ClassVar[bool] = False
    """True if a smaller value of the selection metric is better."""
    new_head: ClassVar[bool] = True
    """True if the head is initialized at random, not pretrained with the base."""
    pretokenized: ClassVar[bool] = False
    """True if rows hold lists of words."""
    needs_fast_tokenizer: ClassVar[bool] = True
    """True if `encode` needs the place of each token in the text, which only a fast tokenizer gives."""
    baseline_rule: ClassVar[str] = "predicts the most frequent label or the mean of train for every example"
    """Rule of `constant_baseline`, for reports: a verb and its object."""
    test_settings: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    """Settings for the contract tests: one for each path through the code."""

    max_length: int | None = Field(None, ge=8)
    """Maximum number of tokens per example, e.g. 256. Null: the model's own limit."""
    truncate: bool = False
    """Cut inputs that are longer, and count what is lost. False: a longer input is an error."""

    # Rows

    @classmethod
    def row_formats(cls) -> list[tuple[dict[str, Any], Mapping[str, Any]]]:
        """Example rows of every accepted format: task settings, and fields that fit them. The simplest comes first."""
        return [({}, cls.model_validate({}).sample_rows()[0].fields)]

    def from_training(self: Self, train: Sequence[Row]) -> Self:
        """A copy with what must be computed from the training rows alone, e.g. class weights. Called before `bind`."""
        return self

    @abc.abstractmethod
    def bind(self: Self, rows: Iterable[Row]) -> Self:
        """A copy that knows what is to be learned, e.g. the labels in `rows`. Raises UserError at the first bad row."""

    def normalize_row(self, row: Row) -> Row:
        """The row in the form that the other methods expect, from any form that the task accepts. Raises UserError."""
        return row

    def check_row(self, row: Row) -> None:
        """Raise UserError, `where: field: reason`, if the row is bad on its own, whatever the other rows are."""
        try:
            self.bind([row])
        except UserError as error:
            if str(error).startswith(f"{row.where}: "):  # any other error concerns the set of rows, e.g. one label only
                raise

    def check_training_rows(self, rows: Sequence[Row]) -> str | None:
        """A remark on the training rows for the user, e.g. labels that none of them has. Called on a bound task.

        Raises UserError if nothing can be learned from them by any method.
        """
        return None

    # Model

    @abc.abstractmethod
    def model_settings(self) -> dict[str, Any]:
        """Settings for the model's config, e.g. `num_labels`. Called on a bound task."""

    def incompatibility(self, model: PreTrainedModel) -> str | None:
        """Reason, in one line, why this model cannot do the task with these settings; None if it can."""
        return None

    # Examples

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Change what of the tokenizer depends on the task, e.g. its languages. Raises UserError, `setting: reason`.

        Called on every loaded tokenizer, that of the base and the one saved with a tuned model.
        """

    @abc.abstractmethod
    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, limit: int) -> Encoded:
        """Examples of at most `limit` tokens. Raises UserError if a row is longer and `truncate` is off."""

    def training_examples(self, examples: Sequence[Example], limit: int) -> list[Example]:
        """The examples to train on, e.g. packed into sequences of at most `limit` tokens."""
        return list(examples)

    @property
    def packs(self) -> bool:
        """True if a training sequence may hold several rows, separated by their position ids alone."""
        return False

    def lengths(self, example: Example) -> tuple[int, ...]:
        """Tokens of each sequence that the model computes on. A batch pads each of them separately."""
        return (len(example),)

    def stretched(self, example: Example, length: int) -> Example:
        """The example at exactly `length` tokens, its content repeated or cut: for measurements, not for training.

        Features with one value per token are stretched; the others stay as they are.
        """
        tokens = len(example)
        features = {
            name: [values[i % tokens] for i in range(length)] if len(values) == tokens else values
            for name, values in example.features.items()
        }
        return Example(features, example.row)

    @abc.abstractmethod
    def collate(self, examples: Sequence[Example], padding_token: int) -> dict[str, torch.Tensor]:
        """A padded batch: `input_ids`, `attention_mask`, `labels` (batch, length) int64."""

    def without_targets(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The batch without targets: its loss is 0, its shapes are the same."""
        import torch

        return {**batch, "labels": torch.full_like(batch["labels"], IGNORED)}

    # Training

    def model_inputs(self, batch: dict[str, torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Keyword arguments of the model's forward pass: the batch without its labels."""
        return {name: tensor for name, tensor in batch.items() if name != "labels"}

    @abc.abstractmethod
    def loss(self, outputs: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Sum (not mean) of the loss over the batch's targets, a float32 scalar in nats."""

    def count_targets(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Number of targets that `loss` sums over, an int64 scalar."""
        return (batch["labels"] != IGNORED).sum()

    # Answers

    def predict(
        self, model: torch.nn.Module, batch: dict[str, torch.Tensor], tokenizer: PreTrainedTokenizerBase
    ) -> Any:
        """Outputs for `decode`: those of one forward pass, or of a generation."""
        return model(**self.model_inputs(batch, model))

    def generation_settings(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
        """Values of generation_config.json that a saved model needs to generate for this task."""
        return {}

    def generates(self, examples: Sequence[Example]) -> bool:
        """True if `predict` generates text for some of the examples, with one forward pass per token."""
        return False

    @abc.abstractmethod
    def decode(self, outputs: Any, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """One JSON-serializable record per example, with the keys `predicted` and `expected`."""

    @property
    def has_class_scores(self) -> bool:
        """True if `class_scores` gives the probability of every label."""
        return False

    def class_scores(self, outputs: Any) -> list[dict[str, float]]:
        """Probability of each label, by its name, for each example of the outputs."""
        raise NotImplementedError

    def merge(self, records: Sequence[dict[str, Any]], examples: Sequence[Example]) -> list[dict[str, Any]]:
        """One record per row, from the records of its examples, which are consecutive."""
        return list(records)

    def reference(self, row: Row) -> dict[str, Any]:
        """The part of a record that the row determines: `expected`, and other references that the metrics read."""
        return {"expected": row.fields[self.fields[-1]]}

    @abc.abstractmethod
    def answer(self, record: dict[str, Any]) -> dict[str, Any]:
        """A record as `peftlab predict` shows it."""

    # Scores

    @property
    @abc.abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, see `peftlab.metrics`."""

    @property
    @abc.abstractmethod
    def selection(self) -> str:
        """Name of the score by which the best checkpoint and learning rate are selected."""

    @property
    def undefined_score(self) -> float | None:
        """Value of the selection metric where it is undefined because all predictions are equal.

        None: an undefined selection metric is an error.
        """
        return None

    def to_metric_inputs(self, records: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        """Records as the metrics read them: one per answer. Answers of one record are consecutive."""
        return records

    def rank(self, scores: Mapping[str, float]) -> float:
        """The selection metric, with its sign changed if lower is better: the largest rank is the best."""
        value = (
            scores[self.selection] if self.undefined_score is None else scores.get(self.selection, self.undefined_score)
        )
        return -value if self.lower_is_better else value

    def constant_baseline(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, float] | None:
        """Scores on `rows` of an answer without a model: the one that is correct most often in `train`, or a copy.

        None if there is none.
        """
        return None

    # Inputs without a data file, and without targets

    @abc.abstractmethod
    def row_from_text(self, text: str, where: str) -> Row:
        """A row without target, from one line of text. `where` names the line in messages."""

    @property
    def input_fields(self) -> tuple[str, ...]:
        """Fields that a row needs for a prediction."""
        return tuple(field for field in self.fields if field in self.visible_fields)

    def inputs(self, row: Row) -> Row:
        """The row without its target. Raises UserError if a field is missing or of the wrong type."""
        fields = {name: row.fields[name] for name in self.visible_fields if row.fields.get(name) is not None}
        sample = self.sample_rows()[0].fields
        for name in self.input_fields:
            if name not in fields:
                hint = nearest(name, row.fields)
                raise UserError(f"{row.where}: no {name!r}{hint}; it has: {', '.join(map(str, row.fields))}")
            if type(fields[name]) is not type(sample.get(name, fields[name])):
                expected = "a string" if isinstance(sample[name], str) else "a list"
                raise UserError(f"{row.where}: {name}: {expected} was expected, found {str(fields[name])[:60]!r}")
        return Row(row.where, fields)

    @abc.abstractmethod
    def sample_rows(self) -> list[Row]:
        """A few short rows with targets that fit these settings, of different lengths: for `peftlab doctor`."""


def pad(sequences: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """(batch, longest) int64, padded on the right.

    >>> pad([[1, 2], [3]], 0).tolist()
    [[1, 2], [3, 0]]
    """
    import torch

    longest = max(len(sequence) for sequence in sequences)
    return torch.tensor([[*sequence, *[value] * (longest - len(sequence))] for sequence in sequences])
