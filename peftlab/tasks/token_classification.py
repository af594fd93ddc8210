"""Token classification: named entities, chunks, parts of speech. A word's first token carries its tag."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from peftlab import metrics
from peftlab.data.examples import Encoded, Example, Row
from peftlab.errors import UserError
from peftlab.metrics.entity_f1 import entities
from peftlab.tasks.classification import Classification, known_labels, label_ids
from peftlab.tasks.tagging_schemes import IOB2, PREFIXES, SINGLE, Scheme, is_tag, may_follow, to_iob2
from peftlab.tasks.task import IGNORED, pad

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

NO_TAG = ""  # predicted for a word without tokens in plain tagging: never correct
BATCH = 1000  # rows per call of the tokenizer: ten times faster than row by row


class TokenClassification(Classification):
    """Tag each word of a sentence: named entities or chunks (B-x, I-x, O), or parts of speech.

    A row has `tokens`, a list of words, and `labels`, one tag per word. Entity tags of any `scheme` are learned,
    predicted and listed in `labels` as IOB2.
    """

    kind: Literal["token_classification"] = "token_classification"
    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    task_type: ClassVar[str] = "TOKEN_CLS"
    fields: ClassVar[tuple[str, ...]] = ("tokens", "labels")
    visible_fields: ClassVar[tuple[str, ...]] = ("tokens",)
    default_model: ClassVar[str | None] = "sentence-transformers/all-MiniLM-L6-v2"
    pretokenized: ClassVar[bool] = True
    test_settings: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"scheme": "plain", "label_smoothing": 0.1, "class_weights": "balanced"},
    )

    scheme: Scheme = "iob2"
    """Tagging scheme of the rows: iob2, iob1, iobes (also called BIOES) or bilou for entities and chunks; `plain` for
    tags without B- and I-, e.g. parts of speech, which are scored word by word."""

    unopened: Literal["error", "begin"] = "error"
    """An I- tag in IOB2 that no tag of its entity precedes: `error` refuses the row, `begin` reads it as B-, as
    conlleval does."""

    added_fields: ClassVar[Mapping[str, Any]] = {"unopened": "error"}

    @model_validator(mode="after")
    def _labels_fit_the_scheme(self) -> TokenClassification:
        for label in self.labels or []:
            if self._has_entities and not IOB2.fullmatch(label):
                raise ValueError(f"{label!r} is not an IOB2 tag: O, B-x or I-x; other tags need scheme: plain")
        if self.unopened == "begin" and self.scheme != "iob2":
            raise ValueError("unopened: begin is for scheme: iob2")
        return self

    @property
    def _has_entities(self) -> bool:
        return self.scheme != "plain"

    @property
    def selection(self) -> str:
        return "entity_f1" if self._has_entities else "accuracy"

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("entity_f1",) if self._has_entities else ("accuracy", "f1")

    @classmethod
    def row_formats(cls) -> list[tuple[dict[str, Any], Mapping[str, Any]]]:
        words = ["Ada", "sings"]
        return [
            ({}, {"tokens": words, "labels": ["B-PER", "O"]}),
            *(({"scheme": scheme}, {"tokens": words, "labels": ["O", "O"]}) for scheme in PREFIXES if scheme != "iob2"),
            ({"scheme": "plain"}, {"tokens": words, "labels": ["NOUN", "VERB"]}),
        ]

    def from_training(self, train: Sequence[Row]) -> TokenClassification:
        for row in train:
            _check(row, self.labels, self.scheme)
        return self._with_balanced_weights([tag for row in train for tag in self._tags(row)])

    def normalize_row(self, row: Row) -> Row:
        tags = row.fields.get("labels")
        if self.label_codes:
            tags = self._named(tags)
        if self.unopened == "begin" and isinstance(tags, (list, tuple)) and all(map(IOB2.fullmatch, map(str, tags))):
            tags = to_iob2(list(map(str, tags)), "iob1")
        return row if tags is row.fields.get("labels") else Row(row.where, {**row.fields, "labels": tags})

    def check_row(self, row: Row) -> None:
        _check(row, self.labels, self.scheme)

    def bind(self, rows: Iterable[Row]) -> TokenClassification:
        seen: set[str] = set()
        for row in rows:
            self.check_row(row)
            seen.update(self._tags(row))
        ordered = sorted(seen)
        if self._has_entities:  # "O" first, then by entity type: B-LOC I-LOC B-MISC ...
            ordered = sorted(seen, key=lambda tag: (tag != "O", tag[2:] if tag[1:2] == "-" else tag, tag))
        task = self.model_copy(update={"labels": self.labels if self.labels is not None else ordered})
        task._check_weights()
        return task

    def _target_labels(self, row: Row) -> Iterable[Sequence[str]]:
        return [[tag] for tag in self._tags(row)]

    def _tags(self, row: Row) -> list[str]:
        """The row's tags; those of entities in IOB2."""
        return to_iob2(row.fields["labels"], self.scheme) if self._has_entities else list(row.fields["labels"])

    def check_training_rows(self, rows: Sequence[Row]) -> str | None:
        remark = super().check_training_rows(rows)
        if remark is None and not self._has_entities and "O" in self._labels():
            return "the label O suggests entities: scheme: plain scores words; to score entities, use tags B-x and I-x"
        return remark

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, limit: int) -> Encoded:
        ids_of_labels = label_ids(self._labels())
        counts = {"truncated_sentences": 0, "lost_words": 0, **({"lost_entities": 0} if self._has_entities else {})}
        examples = []
        space = " " if _joins_words(tokenizer) else ""
        for start in range(0, len(rows), BATCH):
            chunk = rows[start : start + BATCH]
            sentences = [[f"{space}{word}" for word in row.fields["tokens"]] for row in chunk]
            encoded = tokenizer(sentences, is_split_into_words=True, verbose=False)
            for i, row in enumerate(chunk):
                ids, words = encoded["input_ids"][i], encoded.word_ids(i)
                if len(ids) > limit:
                    if not self.truncate:
                        raise UserError(
                            f"{row.where}: {len(ids)} tokens, but at most {limit} fit; "
                            "set task.truncate: true to cut such sentences and count what is lost"
                        )
                    ids, words = _cut(ids, words, limit)
                    counts["truncated_sentences"] += 1
                first = [  # the word of each token that begins one
                    word if word != previous else None for previous, word in zip([None, *words], words, strict=False)
                ]
                tags = self._tags(row) if row.fields.get("labels") else None
                # In addition to words cut off: a word that consists of control characters has no tokens.
                lost = set(range(len(row.fields["tokens"]))).difference(words)
                counts["lost_words"] += len(lost)
                if tags and self._has_entities and lost:
                    counts["lost_entities"] += _entities_with(tags, lost)
                features = {
                    "input_ids": ids,
                    "labels": [IGNORED if word is None else ids_of_labels[tags[word]] if tags else 0 for word in first],
                    "word_ids": [IGNORED if word is None else word for word in first],
                }
                examples.append(Example(features, row))
        return Encoded(examples, counts)

    def collate(self, examples: Sequence[Example], padding_token: int) -> dict[str, torch.Tensor]:
        return {
            "input_ids": pad([example.features["input_ids"] for example in examples], padding_token),
            "attention_mask": pad([[1] * len(example) for example in examples], 0),
            "labels": pad([example.features["labels"] for example in examples], IGNORED),
        }

    def loss(self, outputs: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.cross_entropy(outputs.logits.flatten(0, 1), batch["labels"].flatten())

    def decode(self, outputs: Any, examples: Sequence[Example]) -> list[dict[str, Any]]:
        labels = self._labels()
        best = outputs.logits.argmax(dim=-1).tolist()
        records = []
        for example, best_of_tokens in zip(examples, best, strict=True):
            words = list(example.row.fields["tokens"])
            tags = ["O" if self._has_entities else NO_TAG] * len(words)  # also for words that truncation cut off
            for label, word in zip(best_of_tokens, example.features["word_ids"], strict=False):
                if word != IGNORED:
                    tags[word] = labels[label]
            expected = self._tags(example.row) if example.row.fields.get("labels") else None
            record = {"tokens": words, "predicted": tags, "expected": expected}
            unseen = len(words) - sum(word != IGNORED for word in example.features["word_ids"])
            records.append(record | ({"words_unseen": unseen} if unseen else {}))
        return records

    def reference(self, row: Row) -> dict[str, Any]:
        return {"expected": self._tags(row)}

    def to_metric_inputs(self, records: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        if self._has_entities:
            return records
        return [
            {"predicted": predicted, "expected": expected}
            for record in records
            for predicted, expected in zip(record["predicted"], record["expected"], strict=True)
        ]

    def constant_baseline(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, float]:
        counts = collections.Counter(tag for row in train for tag in self._tags(row))
        best = max(self._labels(), key=lambda tag: counts[tag])
        records = [{"predicted": [best] * len(tags), "expected": tags} for tags in map(self._tags, rows)]
        return metrics.score(self.metrics, self.to_metric_inputs(records))

    def row_from_text(self, text: str, where: str) -> Row:
        return Row(where, {"tokens": re.findall(r"\w+(?:[-'’.]\w+)*|[^\w\s]", text)})

    def inputs(self, row: Row) -> Row:
        text = row.fields.get("tokens")
        return self.row_from_text(text, row.where) if isinstance(text, str) else super().inputs(row)

    def sample_rows(self) -> list[Row]:
        tags = self.labels or ["NOUN", "VERB", "PUNCT"]
        if self._has_entities:
            tags = [tag for tag in self.labels or ["O", "B-PER", "B-LOC"] if not tag.startswith("I-")] or ["O"]
            tags = [tag if tag == "O" else SINGLE[self.scheme] + tag[1:] for tag in tags]
        words = ["Ada", "met", "Max", "in", "Ulm", "."]
        lengths = (6, 5, 3, 2)
        return [
            Row(f"sample:{length}", {"tokens": words[:length], "labels": [tags[i % len(tags)] for i in range(length)]})
            for length in lengths
        ]

    def answer(self, record: dict[str, Any]) -> dict[str, Any]:
        """The entities that `entity_f1` counts, or the tag of each word.

        `start` and `end` of an entity are word positions, [start, end).
        """
        words = record["tokens"]
        unseen = {"words_unseen": record["words_unseen"]} if "words_unseen" in record else {}
        if self.scheme == "plain":
            return {"words": words, "tags": [tag or None for tag in record["predicted"]], **unseen}
        (spans,) = entities([record["predicted"]])
        return {
            "words": words,
            "entities": [
                {"type": type_, "start": start, "end": end, "text": " ".join(words[start:end])}
                for type_, start, end in spans
            ],
            **unseen,
        }


def _joins_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """True if the tokenizer drops the spaces between pretokenized words, as those of Llama 3 and Qwen do."""
    pieces = tokenizer(["a", "b"], is_split_into_words=True, add_special_tokens=False)["input_ids"]
    return bool(pieces[1:] != tokenizer("a b", add_special_tokens=False)["input_ids"][1:])


def _entities_with(tags: Sequence[str], lost: set[int]) -> int:
    """Number of entities that contain a lost word, and so can never be predicted correctly.

    >>> _entities_with(["B-A", "I-A", "O", "B-B", "B-C"], {1, 2, 4})
    2
    """
    (spans,) = entities([tags])
    return sum(not lost.isdisjoint(range(start, end)) for _, start, end in spans)


def _cut(ids: list[int], words: list[int | None], limit: int) -> tuple[list[int], list[int | None]]:
    """Token ids and their words, cut to `limit` tokens. Special tokens are kept.

    >>> _cut([101, 7, 8, 9, 102], [None, 0, 1, 2, None], 4)
    ([101, 7, 8, 102], [None, 0, 1, None])
    """
    special = sum(word is None for word in words)
    in_words = [k for k, word in enumerate(words) if word is not None][: limit - special]
    positions = sorted({*in_words, *(k for k, word in enumerate(words) if word is None)})
    return [ids[k] for k in positions], [words[k] for k in positions]


def _check(row: Row, labels: list[str] | None, scheme: Scheme) -> None:
    """Raise UserError if the row is bad, or a tag is none of `labels` (None: any)."""
    words, tags = row.fields["tokens"], row.fields["labels"]
    for field, values in (("tokens", words), ("labels", tags)):
        if not isinstance(values, (list, tuple)) or not all(isinstance(value, str) for value in values):
            raise UserError(f"{row.where}: {field}: a list of strings was expected, found {str(values)[:60]!r}")
    if not words:
        raise UserError(f"{row.where}: tokens: an empty sentence")
    if len(words) != len(tags):
        raise UserError(f"{row.where}: labels: {len(tags)} tags for {len(words)} tokens")
    for word, tag in zip(words, tags, strict=True):
        if not word.strip():
            raise UserError(f"{row.where}: tokens: an empty word")
        if not tag and scheme == "plain":
            raise UserError(f"{row.where}: labels: an empty tag at {word!r}")
    if scheme != "plain":
        _check_scheme(row.where, words, tags, scheme)
        tags = to_iob2(tags, scheme)
    for tag in tags:
        if labels is not None and tag not in labels:
            raise UserError(f"{row.where}: labels: unknown tag {tag!r}{known_labels(tag, labels)}")


def _check_scheme(where: str, words: Sequence[str], tags: Sequence[str], scheme: Scheme) -> None:
    """Raise UserError if the tags are not those of entities in the scheme."""
    name, article = scheme.upper(), "an" if scheme[0] == "i" else "a"
    *first, last = [f"{letter}-x" for letter in PREFIXES[scheme]]
    others = f"task.scheme can be {', '.join(other for other in PREFIXES if other != scheme)} instead"
    previous = "O"
    for word, tag in zip(words, tags, strict=True):
        if not is_tag(tag, scheme):
            raise UserError(
                f"{where}: labels: {tag!r} at {word!r} is not {article} {name} tag: O, {', '.join(first)} or {last}; "
                f"{others}; tags without entities, e.g. parts of speech, need task.scheme: plain"
            )
        if not may_follow(previous, tag, scheme):
            if scheme == "iob2":
                raise UserError(
                    f"{where}: labels: {tag!r} at {word!r} follows {previous!r}, and no B{tag[1:]} opens it; "
                    "task.unopened: begin reads such an I- as B-, data.on_bad_row: skip leaves out at most 10% of rows"
                )
            cure = "; for a mixture of IOB1 and IOB2 set task.scheme: iob2 and task.unopened: begin"
            raise UserError(
                f"{where}: labels: {tag!r} at {word!r} follows {previous!r}: these tags are not {name}"
                f"{cure if scheme == 'iob1' else f'; {others}'}"
            )
        previous = tag
    if not may_follow(previous, "O", scheme):
        raise UserError(f"{where}: labels: {previous!r} at {words[-1]!r} is never closed: these tags are not {name}")
