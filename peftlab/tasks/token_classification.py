"""Token classification: entities and chunks, or parts of speech. A word's first sub-word carries its tag."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from peftlab import metrics
from peftlab.data.examples import Encoded, Example, Row
from peftlab.errors import UserError
from peftlab.tasks.classification import Classification, known, numbers
from peftlab.tasks.tagging_schemes import ALONE, IOB2, SPANS, Scheme, is_tag, may_follow, to_iob2
from peftlab.tasks.task import IGNORED, pad

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

NO_TAG = ""  # of a word that the model did not see: never right


class TokenClassification(Classification):
    """A tag for each word of a sentence: O, B-x and I-x for entities and chunks, or plain ones.

    The tags of entities may be written otherwise; they are learnt, predicted and listed in `labels` as IOB2.
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

    scheme: Scheme = "iob2"  # in which the rows are tagged; iobes is BIOES, too

    @model_validator(mode="after")
    def _of_the_scheme(self) -> TokenClassification:
        for label in self.labels or []:
            if self._spans and not IOB2.fullmatch(label):
                raise ValueError(f"{label!r} is not an IOB2 tag: O, B-x or I-x; other tags need scheme: plain")
        return self

    @property
    def _spans(self) -> bool:
        return self.scheme != "plain"

    @property
    def selection(self) -> str:
        return "entity_f1" if self._spans else "accuracy"

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("entity_f1",) if self._spans else ("accuracy", "f1")

    @classmethod
    def row_formats(cls) -> list[tuple[dict[str, Any], Mapping[str, Any]]]:
        words = ["Ada", "sings"]
        return [
            ({}, {"tokens": words, "labels": ["B-PER", "O"]}),
            *(({"scheme": scheme}, {"tokens": words, "labels": ["O", "O"]}) for scheme in SPANS if scheme != "iob2"),
            ({"scheme": "plain"}, {"tokens": words, "labels": ["NOUN", "VERB"]}),
        ]

    def from_training(self, train: Sequence[Row]) -> TokenClassification:
        for row in train:
            _check(row, self.labels, self.scheme)
        return self._counted([tag for row in train for tag in self._tags(row)])

    def check_row(self, row: Row) -> None:
        _check(row, self.labels, self.scheme)

    def bind(self, rows: Iterable[Row]) -> TokenClassification:
        seen: set[str] = set()
        for row in rows:
            self.check_row(row)
            seen.update(self._tags(row))
        ordered = sorted(seen)
        if self._spans:  # "O" first, then by entity type: B-LOC I-LOC B-MISC ...
            ordered = sorted(seen, key=lambda tag: (tag != "O", tag[2:] if tag[1:2] == "-" else tag, tag))
        task = self.model_copy(update={"labels": self.labels if self.labels is not None else ordered})
        task._check_weights()
        return task

    def _lessons(self, row: Row) -> Iterable[Sequence[str]]:
        return [[tag] for tag in self._tags(row)]

    def _tags(self, row: Row) -> list[str]:
        """The row's tags as they are learnt."""
        return to_iob2(row.fields["labels"], self.scheme) if self._spans else list(row.fields["labels"])

    def check_training_rows(self, rows: Sequence[Row]) -> str | None:
        remark = super().check_training_rows(rows)
        if remark is None and not self._spans and "O" in self._labels():
            return (
                "O among them may mean entities: scheme: plain scores words, and whole entities need tags B-x and I-x"
            )
        return remark

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, limit: int) -> Encoded:
        number = numbers(self._labels())
        counts = {"truncated_sentences": 0, "lost_words": 0, **({"lost_entities": 0} if self._spans else {})}
        examples = []
        space = " " if _loses_spaces(tokenizer) else ""
        # In batches for the tokenizer's sake: ten times faster than row by row.
        for start in range(0, len(rows), 1000):
            part = rows[start : start + 1000]
            sentences = [[f"{space}{word}" for word in row.fields["tokens"]] for row in part]
            encoded = tokenizer(sentences, is_split_into_words=True, verbose=False)
            for i, row in enumerate(part):
                ids, words = encoded["input_ids"][i], encoded.word_ids(i)
                if len(ids) > limit:
                    if not self.truncate:
                        raise UserError(
                            f"{row.where}: {len(ids)} tokens, but at most {limit} fit; "
                            "set task.truncate: true to cut such sentences and count what is lost"
                        )
                    ids, words = _cut(ids, words, limit)
                    counts["truncated_sentences"] += 1
                first = [word if word != before else None for before, word in zip([None, *words], words, strict=False)]
                tags = self._tags(row) if row.fields.get("labels") else None
                # PublishedRow words cut off, a word of nothing but control characters has no token at all.
                lost = set(range(len(row.fields["tokens"]))).difference(words)
                counts["lost_words"] += len(lost)
                if tags and self._spans and lost:
                    counts["lost_entities"] += _touched(tags, lost)
                features = {
                    "input_ids": ids,
                    "labels": [IGNORED if word is None else number[tags[word]] if tags else 0 for word in first],
                    "words": [IGNORED if word is None else word for word in first],
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
        for example, row_of_best in zip(examples, best, strict=True):
            words = list(example.row.fields["tokens"])
            tags = ["O" if self._spans else NO_TAG] * len(words)  # also of words that truncation cut off
            for guess, word in zip(row_of_best, example.features["words"], strict=False):
                if word != IGNORED:
                    tags[word] = labels[guess]
            expected = self._tags(example.row) if example.row.fields.get("labels") else None
            record = {"tokens": words, "predicted": tags, "expected": expected}
            unseen = len(words) - sum(word != IGNORED for word in example.features["words"])
            records.append(record | ({"words_unseen": unseen} if unseen else {}))
        return records

    def reference(self, row: Row) -> dict[str, Any]:
        return {"expected": self._tags(row)}

    def to_metric_inputs(self, records: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        if self._spans:
            return records
        return [
            {"predicted": predicted, "expected": expected}
            for record in records
            for predicted, expected in zip(record["predicted"], record["expected"], strict=True)
        ]

    def constant_baseline(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, float]:
        counts = collections.Counter(tag for row in train for tag in self._tags(row))
        best = max(self._labels(), key=lambda tag: counts[tag])
        found = [self._tags(row) for row in rows]
        records = [{"predicted": [best] * len(tags), "expected": tags} for tags in found]
        return metrics.score(self.metrics, self.to_metric_inputs(records))

    def row_from_text(self, text: str, where: str) -> Row:
        return Row(where, {"tokens": re.findall(r"\w+(?:[-'’.]\w+)*|[^\w\s]", text)})

    def inputs(self, row: Row) -> Row:
        text = row.fields.get("tokens")
        return self.row_from_text(text, row.where) if isinstance(text, str) else super().inputs(row)

    def sample_rows(self) -> list[Row]:
        tags = self.labels or ["NOUN", "VERB", "PUNCT"]
        if self._spans:
            tags = [tag for tag in self.labels or ["O", "B-PER", "B-LOC"] if not tag.startswith("I-")] or ["O"]
            tags = [tag if tag == "O" else ALONE[self.scheme] + tag[1:] for tag in tags]
        words = ["Ada", "met", "Max", "in", "Ulm", "."]
        lengths = (6, 5, 3, 2)
        return [
            Row(f"sample:{length}", {"tokens": words[:length], "labels": [tags[i % len(tags)] for i in range(length)]})
            for length in lengths
        ]

    def answer(self, record: dict[str, Any]) -> dict[str, Any]:
        """Word-level entities, those that the metric counts, or the tag of each word.

        `start` and `end` count words, `end` is one past the last.
        """
        words = record["tokens"]
        unseen = {"words_unseen": record["words_unseen"]} if "words_unseen" in record else {}
        if self.scheme == "plain":
            return {"words": words, "tags": [tag or None for tag in record["predicted"]], **unseen}
        from peftlab.metrics.entity_f1 import entities

        (counted,) = entities([record["predicted"]])
        found = [
            {"type": sort, "start": start, "end": end, "text": " ".join(words[start:end])}
            for sort, start, end in counted
        ]
        return {"words": words, "entities": found, **unseen}


def _loses_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether words given one by one are glued together: byte-level tokenizers of Llama 3 and Qwen, without a flag."""
    pieces = tokenizer(["a", "b"], is_split_into_words=True, add_special_tokens=False)["input_ids"]
    return bool(pieces[1:] != tokenizer("a b", add_special_tokens=False)["input_ids"][1:])


def _touched(tags: Sequence[str], lost: set[int]) -> int:
    """How many entities have a lost word, and so can never be found whole.

    >>> _touched(["B-A", "I-A", "O", "B-B", "B-C"], {1, 2, 4})
    2
    """
    from peftlab.metrics.entity_f1 import entities

    (found,) = entities([tags])
    return sum(not lost.isdisjoint(range(start, end)) for _, start, end in found)


def _cut(ids: list[int], words: list[int | None], limit: int) -> tuple[list[int], list[int | None]]:
    """The first `limit` tokens, special ones all kept.

    >>> _cut([101, 7, 8, 9, 102], [None, 0, 1, 2, None], 4)
    ([101, 7, 8, 102], [None, 0, 1, None])
    """
    special = sum(word is None for word in words)
    inside = [k for k, word in enumerate(words) if word is not None][: limit - special]
    kept = sorted({*inside, *(k for k, word in enumerate(words) if word is None)})
    return [ids[k] for k in kept], [words[k] for k in kept]


def _check(row: Row, labels: list[str] | None, scheme: Scheme) -> None:
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
        _check_spans(row.where, words, tags, scheme)
        tags = to_iob2(tags, scheme)
    for tag in tags:
        if labels is not None and tag not in labels:
            raise UserError(f"{row.where}: labels: unknown tag {tag!r}{known(tag, labels)}")


def _check_spans(where: str, words: Sequence[str], tags: Sequence[str], scheme: Scheme) -> None:
    name, article, letters = (
        scheme.upper(),
        "an" if scheme[0] == "i" else "a",
        [f"{letter}-x" for letter in SPANS[scheme]],
    )
    others = f"task.scheme names another: {', '.join(other for other in SPANS if other != scheme)}"
    before = "O"
    for word, tag in zip(words, tags, strict=True):
        if not is_tag(tag, scheme):
            raise UserError(
                f"{where}: labels: {tag!r} at {word!r} is not {article} {name} tag: O, {', '.join(letters[:-1])} or "
                f"{letters[-1]}; {others}; tags that are no spans, e.g. parts of speech, need task.scheme: plain"
            )
        if not may_follow(before, tag, scheme):
            raise UserError(
                f"{where}: labels: {tag!r} at {word!r} follows {before!r}: these tags are not {name}; {others}"
            )
        before = tag
    if not may_follow(before, "O", scheme):
        raise UserError(f"{where}: labels: {before!r} at {words[-1]!r} is never closed: these tags are not {name}")
