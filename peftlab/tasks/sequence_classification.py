"""Sequence classification: a label, several labels or a number for a text, a pair of texts, or two entities."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from peftlab import metrics
from peftlab.data.examples import Encoded, Example, Row
from peftlab.errors import UserError, nearest
from peftlab.tasks.classification import Classification, known_labels, label_ids, label_name
from peftlab.tasks.sequence_inputs import FIELDS, InputType, input_texts, input_type, row_from_line
from peftlab.tasks.task import IGNORED, pad

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

METRICS = {
    "single_label": ("accuracy", "f1", "mcc", "calibration_error"),
    "multi_label": ("multilabel_f1",),
    "regression": ("regression_error", "pearson", "spearman"),
}
SELECTABLE = {  # the first is the default
    "single_label": ("accuracy", "macro_f1", "mcc"),
    "multi_label": ("micro_f1", "macro_f1", "exact_match"),
    "regression": ("r2", "pearson", "spearman"),
}
DIGITS = 6  # of a probability or a number in a record
BATCH = 1000  # rows per call of the tokenizer


class SequenceClassification(Classification):
    """Classify a text or a pair of texts: one label, several labels, or a number (regression).

    A row has `text` and `label`, and for a pair `text_pair`, or for a relation between two entities `head` and `tail`:
    [start, end) in characters of the text, or in words if the text is a list of words.
    """

    kind: Literal["sequence_classification"] = "sequence_classification"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    task_type: ClassVar[str] = "SEQ_CLS"
    fields: ClassVar[tuple[str, ...]] = ("text", "label")
    optional_fields: ClassVar[tuple[str, ...]] = ("text_pair", "head", "tail")
    visible_fields: ClassVar[tuple[str, ...]] = ("text", "text_pair", "head", "tail")
    default_model: ClassVar[str | None] = "sentence-transformers/all-MiniLM-L6-v2"
    test_settings: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"input": "pair", "label_smoothing": 0.1, "class_weights": "balanced"},
        {"input": "entities"},
        {"problem": "multi_label"},
        {"problem": "regression"},
    )

    problem: Literal["single_label", "multi_label", "regression"] = "single_label"
    """Type of the target: one label, a list of labels, or a number. `data.lists` splits a cell of a table into a list,
    e.g. {label: "|"}."""
    input: InputType | None = None
    """Type of the input: `text`, `pair` (text and text_pair) or `entities` (text, head and tail). Null: by the fields
    of the first row."""
    select_by: str | None = None
    """Score by which the best checkpoint and learning rate are selected, e.g. macro_f1. single_label: accuracy,
    macro_f1 or mcc; multi_label: micro_f1, macro_f1 or exact_match; regression: r2, pearson or spearman. Null: the
    first of these."""

    @model_validator(mode="after")
    def _settings_fit_the_problem(self) -> SequenceClassification:
        if self.problem != "single_label" and (self.label_smoothing or self.class_weights):
            raise ValueError("label_smoothing and class_weights are for problem: single_label")
        selectable = SELECTABLE[self.problem]
        if self.select_by is not None and self.select_by not in selectable:
            names = ", ".join(selectable)
            raise ValueError(f"select_by: {self.select_by!r} is none of {names}{nearest(self.select_by, selectable)}")
        if self.problem == "regression" and self.labels is not None:
            raise ValueError("a regression has no labels")
        return self

    @property
    def selection(self) -> str:
        return self.select_by or SELECTABLE[self.problem][0]

    @property
    def undefined_score(self) -> float | None:
        return 0.0 if self.selection in ("mcc", "pearson", "spearman") else None

    @property
    def metrics(self) -> tuple[str, ...]:
        return METRICS[self.problem]

    @classmethod
    def row_formats(cls) -> list[tuple[dict[str, Any], Mapping[str, Any]]]:
        pair = {"text": "Ada sings.", "text_pair": "Who sings?"}
        return [
            ({}, {**pair, "label": "yes"}),
            ({}, {**pair, "label": 1}),
            ({}, {"text": "Ada sings.", "label": "yes"}),
            ({}, {"text": "Ada sings.", "label": 1}),
            ({"problem": "multi_label"}, {"text": "Ada sings.", "label": ["music"]}),
            ({"problem": "regression"}, {"text": "Ada sings.", "label": 0.5}),
        ]

    def normalize_row(self, row: Row) -> Row:
        if not self.label_codes or "label" not in row.fields:
            return row
        return Row(row.where, {**row.fields, "label": self._named(row.fields["label"])})

    def check_row(self, row: Row) -> None:
        self._texts(row)
        self._labels_of(row)

    def from_training(self, train: Sequence[Row]) -> SequenceClassification:
        bound = self.bind(train)
        if self.problem == "regression":
            return bound
        labels = [label for row in train for label in bound._labels_of(row)]
        if self.labels is None and len(bound._labels()) > max(50, len(train) / 2):
            raise UserError(
                f"data: {len(bound._labels())} different labels in {len(train)} training rows, e.g. {labels[0]!r}; "
                "set task.problem: regression if they are numbers, or list them in task.labels if they are labels"
            )
        return bound._with_balanced_weights(labels)

    def bind(self, rows: Iterable[Row]) -> SequenceClassification:
        task, seen = self, set()
        for row in rows:
            if task.input is None:
                task = task.model_copy(update={"input": input_type(row)})
            task._texts(row)
            seen.update(task._labels_of(row))
        if task.problem == "regression":
            return task
        if task.labels is None:
            task = task.model_copy(update={"labels": sorted(seen, key=_sort_key)})
        if task.problem == "single_label" and len(task._labels()) < 2:
            raise UserError(f"data: every label is {task._labels()[0]!r}: there is nothing to learn")
        task._check_weights()
        return task

    def _target_labels(self, row: Row) -> Iterable[Sequence[str]]:
        return [[str(_number(row))] if self.problem == "regression" else self._labels_of(row)]

    def model_settings(self) -> dict[str, Any]:
        if self.problem == "regression":
            return {"num_labels": 1, "problem_type": "regression"}
        return {**super().model_settings(), "problem_type": f"{self.problem}_classification"}

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, limit: int) -> Encoded:
        counts = {"truncated_texts": 0, "lost_tokens": 0, "lost_entities": 0}
        examples = []
        # A special token inside a text is text: a second "</s>" would end the text for T5 and BART.
        settings = {"split_special_tokens": True, "return_attention_mask": False, "verbose": False}
        for start in range(0, len(rows), BATCH):
            chunk = rows[start : start + BATCH]
            texts = [self._texts(row) for row in chunk]
            pairs = [second for _, second, _ in texts] if self.input == "pair" else None
            encoded = tokenizer([text for text, _, _ in texts], pairs, **settings)
            for i, row in enumerate(chunk):
                features = {name: values[i] for name, values in encoded.items()}
                length = len(features["input_ids"])
                if length == 0:
                    raise UserError(f"{row.where}: text: {texts[i][0][:60]!r} has no tokens")
                if length > limit:
                    if not self.truncate:
                        raise UserError(
                            f"{row.where}: {length} tokens, but at most {limit} fit; "
                            "set task.truncate: true to cut such texts and count what is lost"
                        )
                    text, second, entities_end = texts[i]
                    cut = {"truncation": "longest_first", "max_length": limit, "return_offsets_mapping": True}
                    shorter = tokenizer(text, second, **settings, **cut)
                    features = {name: shorter[name] for name in features}
                    lost = length - len(features["input_ids"])
                    counts["truncated_texts"] += 1
                    counts["lost_tokens"] += lost
                    counts["lost_entities"] += entities_end > max(end for _, end in shorter["offset_mapping"])
                    row = Row(row.where, {**row.fields, "tokens_lost": lost})
                examples.append(Example(features, row))
        return Encoded(examples, counts)

    def collate(self, examples: Sequence[Example], padding_token: int) -> dict[str, torch.Tensor]:
        batch = {
            name: pad([e.features[name] for e in examples], padding_token if name == "input_ids" else 0)
            for name in examples[0].features
        }
        batch["attention_mask"] = pad([[1] * len(example) for example in examples], 0)
        return {**batch, "labels": self._targets([example.row for example in examples])}

    def loss(self, outputs: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Sum over the texts of the cross-entropy in nats, of the binary cross-entropy of each label, or of the squared
        error, by `problem`."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        logits, labels = outputs.logits.float(), batch["labels"]
        if self.problem == "single_label":
            return self.cross_entropy(logits, labels)
        if self.problem == "regression":
            has_target = ~labels.isnan()
            errors: torch.Tensor = logits[:, 0][has_target] - labels[has_target]
            return errors.square().sum()
        has_target = labels != IGNORED
        return binary_cross_entropy_with_logits(logits[has_target], labels[has_target].float(), reduction="sum")

    def count_targets(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return (~batch["labels"].isnan()).sum() if self.problem == "regression" else super().count_targets(batch)

    def without_targets(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self.problem != "regression":
            return super().without_targets(batch)
        import torch

        return {**batch, "labels": torch.full_like(batch["labels"], math.nan)}

    def decode(self, outputs: Any, examples: Sequence[Example]) -> list[dict[str, Any]]:
        records = []
        for example, logits in zip(examples, outputs.logits.float().cpu(), strict=True):
            fields = example.row.fields
            record = {name: fields[name] for name in ("text", *self.optional_fields) if fields.get(name) is not None}
            record |= {**self._prediction(logits), "expected": self._expected(example.row)}
            records.append(record | ({"tokens_lost": fields["tokens_lost"]} if "tokens_lost" in fields else {}))
        return records

    @property
    def has_class_scores(self) -> bool:
        return self.problem != "regression"

    def class_scores(self, outputs: Any) -> list[dict[str, float]]:
        logits = outputs.logits.float()
        values = logits.softmax(dim=-1) if self.problem == "single_label" else logits.sigmoid()
        return [
            {name: round(value, DIGITS) for name, value in zip(self._labels(), row, strict=True)}
            for row in values.cpu().tolist()
        ]

    def reference(self, row: Row) -> dict[str, Any]:
        return {"expected": self._expected(row)}

    def constant_baseline(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, float]:
        """Scores of the mean; of the most frequent label, its frequency as probability; of the labels of more than half
        of the training rows."""
        constant: dict[str, Any]
        if self.problem == "regression":
            constant = {"predicted": math.fsum(map(_number, train)) / len(train)}
        else:
            counts = collections.Counter(label for row in train for label in self._labels_of(row))
            best = max(self._labels(), key=lambda label: counts[label])
            constant = {"predicted": best, "probability": counts[best] / len(train)}
            if self.problem == "multi_label":
                constant = {"predicted": [label for label in self._labels() if counts[label] > len(train) / 2]}
        return metrics.score(self.metrics, [{**constant, "expected": self._expected(row)} for row in rows])

    def row_from_text(self, text: str, where: str) -> Row:
        return row_from_line(text, self.input or "text", where)

    @property
    def input_fields(self) -> tuple[str, ...]:
        return ("text", *FIELDS[self.input or "text"])

    def sample_rows(self) -> list[Row]:
        texts = ("Good", "A dull film", "Fine, and short", "Bad")
        labels = self.labels or ["negative", "positive"]
        rows = []
        for i, text in enumerate(texts):
            name = labels[i % len(labels)]
            target = {"single_label": name, "multi_label": [name][: i % 3], "regression": i / 2 - 1}[self.problem]
            fields: dict[str, Any] = {"text": text, "label": target}
            if self.input == "pair":
                fields["text_pair"] = texts[i - 1]
            if self.input == "entities":
                fields |= {"head": [0, 1], "tail": [2, len(text)]}
            rows.append(Row(f"sample:{i + 1}", fields))
        return rows

    def answer(self, record: dict[str, Any]) -> dict[str, Any]:
        """The input with its label and probability, its labels and the probability of each label, or its value."""
        name = {"single_label": "label", "multi_label": "labels", "regression": "value"}[self.problem]
        rest = {key: value for key, value in record.items() if key not in ("predicted", "expected")}
        return {**rest, name: record["predicted"]}

    def _prediction(self, logits: torch.Tensor) -> dict[str, Any]:
        """`predicted` and the probabilities, from the logits (classes,) of one text."""
        if self.problem == "regression":
            return {"predicted": round(float(logits[0]), DIGITS)}
        labels = self._labels()
        if self.problem == "single_label":
            probabilities = logits.softmax(dim=-1)
            best = int(probabilities.argmax())
            return {"predicted": labels[best], "probability": round(float(probabilities[best]), DIGITS)}
        by_label = dict(zip(labels, logits.sigmoid().tolist(), strict=True))
        return {
            "predicted": [label for label, probability in by_label.items() if probability > 0.5],
            "probabilities": {label: round(probability, DIGITS) for label, probability in by_label.items()},
        }

    def _targets(self, rows: Sequence[Row]) -> torch.Tensor:
        """(rows,) int64 labels; (rows, labels) int64 of 0 and 1; (rows,) float32. No target: -100, -100, NaN."""
        import torch

        expected = [self._expected(row) for row in rows]
        if self.problem == "regression":
            return torch.tensor([math.nan if value is None else value for value in expected])
        if self.problem == "single_label":
            ids = label_ids(self._labels())
            return torch.tensor([IGNORED if label is None else ids[label] for label in expected])
        return torch.tensor(
            [[IGNORED if labels is None else int(label in labels) for label in self._labels()] for labels in expected]
        )

    def _expected(self, row: Row) -> Any:
        """The row's target as a record has it; None if there is none."""
        if row.fields.get("label") is None:
            return None
        if self.problem == "regression":
            return _number(row)
        labels = self._labels_of(row)
        return labels[0] if self.problem == "single_label" else labels

    def _labels_of(self, row: Row) -> list[str]:
        """Names of the row's labels; empty for a regression, whose number is checked instead. Raises UserError."""
        value = row.fields["label"]
        if self.problem == "regression":
            _number(row)
            return []
        multi_label = self.problem == "multi_label"
        if isinstance(value, (list, tuple)) is not multi_label:
            expected = "a list of labels" if multi_label else "one label"
            hint = (
                "; data.lists splits a text into a list"
                if multi_label
                else "; for several set task.problem: multi_label"
            )
            raise UserError(f"{row.where}: label: {expected} was expected, found {str(value)[:60]!r}{hint}")
        names = [label_name(label) for label in (value if multi_label else [value])]
        for name in names:
            if not isinstance(name, str) or not name.strip():
                hint = "; for numbers set task.problem: regression" if isinstance(name, float) else ""
                raise UserError(f"{row.where}: label: a string or an integer was expected, found {name!r}{hint}")
            if self.labels is not None and name not in self.labels:
                raise UserError(
                    f"{row.where}: label: {name!r} is not a label of the task (those of train, or task.labels)"
                    f"{known_labels(name, self.labels)}"
                )
        return [str(name) for name in names]

    def _texts(self, row: Row) -> tuple[str, str | None, int]:
        return input_texts(row, self.input or input_type(row))


def _number(row: Row) -> float:
    """The target of a regression; a CSV file holds it as text. Raises UserError if it is not a finite number."""
    value = row.fields["label"]
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{row.where}: label: a number was expected, found {str(value)[:60]!r}")
    return number


def _sort_key(label: str) -> tuple[bool, int, str]:
    """Sorts integers by value, then other labels alphabetically.

    >>> sorted(["10", "b", "2", "a"], key=_sort_key)
    ['2', '10', 'a', 'b']
    """
    digits = label.removeprefix("-")
    is_integer = digits.isascii() and digits.isdigit()
    return not is_integer, int(label) if is_integer else 0, label
