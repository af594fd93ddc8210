"""What a task family is asked: which head, how rows become examples, what the loss is, how outputs become answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import Field

from peftlab.component import Component
from peftlab.data.examples import Encoded, Example, Row
from peftlab.errors import UserError, nearest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100  # the label of a position that has no target, as in transformers

Self = TypeVar("Self", bound="Task")


class Task(Component):
    """Between rows and a model. Once bound, a task knows its labels, and is saved with the adapter."""

    auto_class: ClassVar[str]  # transformers' class of base and head
    task_type: ClassVar[str]  # PEFT's name for it
    fields: ClassVar[tuple[str, ...]]  # what a row must carry
    optional_fields: ClassVar[tuple[str, ...]] = ()  # what it may carry besides
    visible_fields: ClassVar[
        tuple[str, ...]
    ] = ()  # of all these, what the model is given; all of them if none is named
    default_model: ClassVar[str | None] = None  # a small base to begin with, by hub id
    lower_is_better: ClassVar[bool] = False  # smaller is better of the selection metric
    new_head: ClassVar[bool] = True  # the head is not pretrained
    pretokenized: ClassVar[bool] = False  # rows hold words, not text

    # Settings, one for each way through the code: what the contract tests try.
    test_settings: ClassVar[tuple[dict[str, Any], ...]] = ({},)

    max_length: int | None = Field(None, ge=8)  # tokens; the model's own limit if not given
    truncate: bool = False  # cut what is longer, and count it; otherwise it is an error

    @classmethod
    def row_formats(cls) -> list[tuple[dict[str, Any], Mapping[str, Any]]]:
        """What rows can look like: settings, and the fields of a row that fits them. The simplest comes first."""
        return [({}, cls.model_validate({}).sample_rows()[0].fields)]

    @property
    def packs(self) -> bool:
        """Whether several rows may share a training sequence, told apart by their positions alone."""
        return False

    @property
    def selection(self) -> str:
        """The metric by which the best state is chosen."""
        raise NotImplementedError

    @property
    def undefined_score(self) -> float | None:
        """What a model that always answers the same counts as where states are chosen, if its score is undefined."""
        return None

    @property
    def metrics(self) -> tuple[str, ...]:
        """Modules of peftlab.metrics."""
        raise NotImplementedError

    def from_training(self: Self, train: Sequence[Row]) -> Self:
        """A copy that knows what only the training rows may tell, e.g. class weights. `bind` comes after it."""
        return self

    def bind(self: Self, rows: Iterable[Row]) -> Self:
        """A copy that knows what is to be learnt, e.g. its labels. Raises UserError at the first bad row."""
        raise NotImplementedError

    def check_row(self, row: Row) -> None:
        """Raise UserError, `where: field: what is wrong`, if the row will not do, whatever the other rows are."""
        try:
            self.bind([row])
        except UserError as error:
            if str(error).startswith(f"{row.where}: "):  # else it is something that one row cannot have right
                raise

    def check_training_rows(self, rows: Sequence[Row]) -> str | None:
        """What a user should know of the training rows, e.g. labels that none of them has. The task is bound.

        Raises UserError if they have nothing to learn, whatever the method.
        """
        return None

    def model_settings(self) -> dict[str, Any]:
        """What the model's config must say of the task, e.g. the number of labels."""
        raise NotImplementedError

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, limit: int) -> Encoded:
        """Examples of at most `limit` tokens. Raises UserError if a row is longer and `truncate` is off."""
        raise NotImplementedError

    def training_examples(self, examples: Sequence[Example], limit: int) -> list[Example]:
        """What of a split's examples is trained on: e.g. packed into sequences of at most `limit` tokens."""
        return list(examples)

    def incompatibility(self, model: PreTrainedModel) -> str | None:
        """Why this very model cannot do what these settings ask, found by trying, in one line; None if it can."""
        return None

    def lengths(self, example: Example) -> tuple[int, ...]:
        """Tokens of each sequence that the model computes on, which a batch pads one by one: what is counted of it."""
        return (len(example),)

    def collate(self, examples: Sequence[Example], padding_token: int) -> dict[str, torch.Tensor]:
        """A padded batch: `input_ids`, `attention_mask`, `labels` (batch, length) int64."""
        raise NotImplementedError

    def loss(self, outputs: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Sum (not mean) of the loss over the batch's targets, a float32 scalar in nats."""
        raise NotImplementedError

    def count_targets(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """How many targets `loss` sums over, an int64 scalar."""
        return (batch["labels"] != IGNORED).sum()

    def without_targets(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The same inputs with nothing to learn."""
        import torch

        return {**batch, "labels": torch.full_like(batch["labels"], IGNORED)}

    def model_inputs(self, batch: dict[str, torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """What the model's forward is given of a batch: all but the labels."""
        return {name: tensor for name, tensor in batch.items() if name != "labels"}

    def predict(
        self, model: torch.nn.Module, batch: dict[str, torch.Tensor], tokenizer: PreTrainedTokenizerBase
    ) -> Any:
        """What `decode` takes: the outputs of one forward, or of as many as a generated text needs."""
        return model(**self.model_inputs(batch, model))

    def generates(self, examples: Sequence[Example]) -> bool:
        """Whether `predict` writes text for some of these, in as many forwards as a text takes."""
        return False

    def decode(self, outputs: Any, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """One JSON-ready record an example, with `predicted` and `expected`."""
        raise NotImplementedError

    def reference(self, row: Row) -> dict[str, Any]:
        """What of a decoded record the row says: `expected`, and whatever else `to_metric_inputs` looks at."""
        return {"expected": row.fields[self.fields[-1]]}

    def merge(self, records: Sequence[dict[str, Any]], examples: Sequence[Example]) -> list[dict[str, Any]]:
        """One record a row, from those of its examples, which stand next to each other."""
        return list(records)

    def rank(self, scores: Mapping[str, float]) -> float:
        """The selection metric, turned so that larger is better."""
        value = (
            scores[self.selection] if self.undefined_score is None else scores.get(self.selection, self.undefined_score)
        )
        return -value if self.lower_is_better else value

    def to_metric_inputs(self, records: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        """The records as the metrics see them: one for each answer, those of a record next to each other."""
        return records

    def constant_baseline(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, float] | None:
        """The metrics on `rows` of the answer that is right most often in `train`, whatever the input."""
        return None

    def row_from_text(self, text: str, where: str) -> Row:
        """A row without targets, from what a user typed."""
        raise NotImplementedError

    @property
    def input_fields(self) -> tuple[str, ...]:
        """What a row must carry for an answer."""
        return tuple(field for field in self.fields if field in self.visible_fields)

    def inputs(self, row: Row) -> Row:
        """The row without its targets: what is asked of a tuned model. Raises UserError if it cannot be asked."""
        found = {name: row.fields[name] for name in self.visible_fields if row.fields.get(name) is not None}
        examples = self.sample_rows()[0].fields
        for name in self.input_fields:
            if name not in found:
                raise UserError(
                    f"{row.where}: no {name!r}{nearest(name, row.fields)}; it has: {', '.join(map(str, row.fields))}"
                )
            if type(found[name]) is not type(examples.get(name, found[name])):
                kind = "text" if isinstance(examples[name], str) else "a list"
                raise UserError(f"{row.where}: {name}: want {kind}, found {str(found[name])[:60]!r}")
        return Row(row.where, found)

    def sample_rows(self) -> list[Row]:
        """A few short rows with targets that fit these settings: what the doctor trains on. Lengths differ."""
        raise NotImplementedError

    def stretched(self, example: Example, length: int) -> Example:
        """The same example at exactly so many tokens, what it says repeated or cut off: to measure with, not to learn.

        What stands beside each token goes with it; everything else stays.
        """
        own = len(example)
        features = {
            name: [values[i % own] for i in range(length)] if len(values) == own else values
            for name, values in example.features.items()
        }
        return Example(features, example.row)

    def answer(self, record: dict[str, Any]) -> dict[str, Any]:
        """What a user wants to see of a decoded record."""
        raise NotImplementedError


def pad(sequences: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """(batch, longest) int64, filled up on the right.

    >>> pad([[1, 2], [3]], 0).tolist()
    [[1, 2], [3, 0]]
    """
    import torch

    longest = max(len(sequence) for sequence in sequences)
    return torch.tensor([[*sequence, *[value] * (longest - len(sequence))] for sequence in sequences])
