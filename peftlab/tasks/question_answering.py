"""Extractive question answering: the answer is a span of the context, read in overlapping windows where it is long."""

from __future__ import annotations

import collections
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from peftlab import metrics
from peftlab.data.examples import Encoded, Example, Row
from peftlab.errors import UserError
from peftlab.tasks.task import IGNORED, Task, pad

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

SHORTEST = 32  # tokens of a window: a third is the question's, a third may overlap
KEPT = 5  # answers of a record
WANTED = '{"text": [...], "answer_start": [...]}'


class QuestionAnswering(Task):
    """As in SQuAD: question, context, answers {text, answer_start}. A window that lacks the answer points at [CLS]."""

    kind: Literal["question_answering"] = "question_answering"
    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    task_type: ClassVar[str] = "QUESTION_ANS"
    fields: ClassVar[tuple[str, ...]] = ("question", "context", "answers")
    visible_fields: ClassVar[tuple[str, ...]] = ("question", "context")
    default_model: ClassVar[str | None] = "sentence-transformers/all-MiniLM-L6-v2"
    test_settings: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"no_answer": True})

    stride: int | None = Field(None, ge=0)  # tokens that neighbouring windows share; a third of a window if not given
    no_answer: bool = False  # as in SQuAD 2: empty `answers` are allowed, and the model may give none
    no_answer_threshold: float = 0.0  # no answer is given if its score beats the best answer's by more
    max_answer: int = Field(30, ge=1)  # tokens of the longest answer looked for
    n_best: int = Field(20, ge=1)  # starts and ends tried in each window

    @property
    def selection(self) -> str:
        return "squad_f1"

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("squad",)

    def bind(self, rows: Iterable[Row]) -> QuestionAnswering:
        for row in rows:
            _check(row, self.no_answer)
        return self.model_copy()

    def model_settings(self) -> dict[str, Any]:
        return {"num_labels": 2}  # start and end

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, limit: int) -> Encoded:
        if limit < SHORTEST:
            raise UserError(
                f"task.max_length: {limit} tokens do not hold question and context; want {SHORTEST} or more"
            )
        stride = limit // 3 if self.stride is None else self.stride
        if stride > limit // 3:
            raise UserError(
                f"task.stride: {stride} tokens, but of a window of {limit} at most {limit // 3} may overlap"
            )
        counts = {"truncated_questions": 0, "lost_answers": 0}
        examples = []
        for start in range(0, len(rows), 1000):  # in batches for the tokenizer's sake
            part = rows[start : start + 1000]
            questions, cut = self._questions(part, tokenizer, limit // 3)
            counts["truncated_questions"] += cut
            encoded = tokenizer(
                questions,
                [row.fields["context"] for row in part],
                truncation="only_second",
                max_length=limit,
                stride=stride,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
            of_row = encoded["overflow_to_sample_mapping"]
            for number, windows in itertools.groupby(range(len(of_row)), key=of_row.__getitem__):
                found = [_window(encoded, window, part[number], tokenizer) for window in windows]
                examples += [Example(features, part[number]) for features, _ in found]
                counts["lost_answers"] += bool(_answers(part[number])) and not any(has for _, has in found)
        tokenizer.backend_tokenizer.no_truncation()  # or it would be saved so
        return Encoded(examples, counts)

    def collate(self, examples: Sequence[Example], padding_token: int) -> dict[str, torch.Tensor]:
        import torch

        batch = {
            "input_ids": pad([example.features["input_ids"] for example in examples], padding_token),
            "attention_mask": pad([[1] * len(example) for example in examples], 0),
            "labels": torch.tensor([example.features["labels"] for example in examples]),
        }
        if "token_type_ids" in examples[0].features:
            batch["token_type_ids"] = pad([example.features["token_type_ids"] for example in examples], 0)
        return batch

    def loss(self, outputs: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        from torch.nn.functional import cross_entropy

        padding = batch["attention_mask"] == 0  # else the loss would depend on the neighbours in the batch
        losses = [
            cross_entropy(logits.float().masked_fill(padding, -math.inf), labels, ignore_index=IGNORED, reduction="sum")
            for logits, labels in zip(
                (outputs.start_logits, outputs.end_logits), batch["labels"].unbind(dim=1), strict=True
            )
        ]
        return losses[0] + losses[1]

    def decode(self, outputs: Any, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """The best spans of each window, by the sum of the logits of start and end; `merge` makes answers of them."""
        return [
            self._spans(start[: len(example)], end[: len(example)], example)
            for start, end, example in zip(
                outputs.start_logits.float().cpu(), outputs.end_logits.float().cpu(), examples, strict=True
            )
        ]

    def merge(self, records: Sequence[dict[str, Any]], examples: Sequence[Example]) -> list[dict[str, Any]]:
        windows = zip(records, (example.row for example in examples), strict=True)
        rows = [list(group) for _, group in itertools.groupby(windows, key=lambda window: id(window[1]))]
        return [self._best([record for record, _ in group], group[0][1]) for group in rows]

    def reference(self, row: Row) -> dict[str, Any]:
        return {"answers": _answers(row)}

    def to_metric_inputs(self, records: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        return [{**record, "expected": record["answers"]} for record in records]

    def constant_baseline(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, float]:
        given = collections.Counter((_answers(row) or [""])[0] for row in train)
        ((best, _),) = given.most_common(1)
        return metrics.score(
            self.metrics, self.to_metric_inputs([{"predicted": best, **self.reference(row)} for row in rows])
        )

    def row_from_text(self, text: str, where: str) -> Row:
        try:
            fields = json.loads(text)
        except ValueError:
            fields = None
        if not isinstance(fields, dict) or not all(_filled(fields.get(name)) for name in ("question", "context")):
            raise UserError(f'{where}: want a JSON object {{"question": "...", "context": "..."}}, found {text[:60]!r}')
        return Row(where, {"question": fields["question"], "context": fields["context"]})

    def sample_rows(self) -> list[Row]:
        rows = [
            _row("Who met Max?", "Ada met Max in Ulm.", "Ada"),
            _row("Where?", "Ada met Max in Ulm.", "in Ulm"),
            _row("Who saw her?", "Ada was in Ulm and in Bonn, and there it was Max who saw her.", "Max"),
            _row("Who met Ada?", "Max did.", "Max"),
        ]
        return [*rows, _row("When?", "Ada met Max in Ulm.", None)] if self.no_answer else rows

    def answer(self, record: dict[str, Any]) -> dict[str, Any]:
        """`start` and `end` count characters of the context; a probability is among the spans looked at."""
        spans = record["spans"]
        best = spans[0] if record["predicted"] else {"start": None, "end": None, "probability": None}
        found = {"question": record["question"], "answer": record["predicted"]}
        found |= {key: best[key] for key in ("start", "end", "probability")}
        found["others"] = [span for span in spans if span is not best]
        return found | ({"no_answer": record["no_answer"]} if self.no_answer else {})

    def _questions(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, room: int) -> tuple[list[str], int]:
        """The questions, cut to `room` tokens where they may be, and how many were."""
        questions = [row.fields["question"].lstrip() for row in rows]
        tokens = tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        cut = 0
        for number, (row, places) in enumerate(zip(rows, tokens["offset_mapping"], strict=True)):
            if len(places) > room:
                if not self.truncate:
                    raise UserError(
                        f"{row.where}: question: {len(places)} tokens, but at most {room} (a third of a window) fit; "
                        "set task.truncate: true to cut such questions and count them"
                    )
                questions[number] = questions[number][: places[room - 1][1]]
                cut += 1
        return questions, cut

    def _spans(self, start: torch.Tensor, end: torch.Tensor, example: Example) -> dict[str, Any]:
        """What one window offers."""
        places = example.features["places"]
        inside = [k for k in range(len(example)) if places[2 * k] != IGNORED]
        count = min(self.n_best, len(inside))
        firsts = [inside[k] for k in start[inside].topk(count).indices]
        lasts = [inside[k] for k in end[inside].topk(count).indices]
        spans = [
            (float(start[first] + end[last]), places[2 * first], places[2 * last + 1])
            for first, last in itertools.product(firsts, lasts)
            if first <= last < first + self.max_answer
        ]
        null = example.features["null"][0]
        return {"spans": sorted(spans, reverse=True)[: self.n_best], "null": float(start[null] + end[null])}

    def _best(self, windows: Sequence[dict[str, Any]], row: Row) -> dict[str, Any]:
        """The record of a row, from those of its windows."""
        context, answers = row.fields["context"], _answers(row)
        scores: dict[tuple[int, int], float] = {}
        for score, first, last in itertools.chain.from_iterable(window["spans"] for window in windows):
            if context[first:last].strip():
                scores[first, last] = max(score, scores.get((first, last), -math.inf))
        best = sorted(scores, key=lambda span: (-scores[span], span))[: self.n_best]
        # The window most sure of an answer decides: the others were right to see none.
        null = min(window["null"] for window in windows)
        shares = _softmax([*(scores[span] for span in best), *([null] if self.no_answer else [])])
        spans = [
            {"text": context[first:last].strip(), "start": first, "end": last, "probability": round(share, 6)}
            for (first, last), share in zip(best, shares, strict=False)
        ]
        none = not best or (self.no_answer and null - scores[best[0]] > self.no_answer_threshold)
        record = {
            "question": row.fields["question"],
            "predicted": "" if none else spans[0]["text"],
            **({"expected": [*answers, ""][0], "answers": answers} if answers is not None else {"expected": None}),
            "spans": spans[:KEPT],
        }
        return record | ({"no_answer": round(shares[-1], 6)} if self.no_answer else {})


def _window(
    encoded: Any, number: int, row: Row, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, list[int]], bool]:
    """Features of one window, and whether the answer is in it. `places` are first and last character of each token."""
    ids = encoded["input_ids"][number]
    offsets = encoded["offset_mapping"][number]
    inside = [k for k, part in enumerate(encoded.sequence_ids(number)) if part == 1]
    null = _null(ids, tokenizer)
    labels, has = [null, null], False
    if _answers(row):
        answers = row.fields["answers"]
        first, last = answers["answer_start"][0], answers["answer_start"][0] + len(answers["text"][0])
        has = bool(inside) and offsets[inside[0]][0] <= first and last <= offsets[inside[-1]][1]
        if has:
            labels = [
                next(k for k in inside if offsets[k][1] > first),
                next(k for k in reversed(inside) if offsets[k][0] < last),
            ]
    places = [IGNORED] * 2 * len(ids)
    for k in inside:
        places[2 * k : 2 * k + 2] = offsets[k]
    features = {"input_ids": ids, "labels": labels, "places": places, "null": [null]}
    if "token_type_ids" in encoded:
        features["token_type_ids"] = encoded["token_type_ids"][number]
    return features, has


def _null(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """Where "no answer here" points: [CLS], or what stands first, as in transformers' run_qa."""
    return next((ids.index(t) for t in (tokenizer.cls_token_id, tokenizer.bos_token_id) if t in ids), 0)


def _answers(row: Row) -> list[str] | None:
    """None of a row that is only asked."""
    answers = row.fields.get("answers")
    return list(answers["text"]) if answers else None


def _row(question: str, context: str, answer: str | None) -> Row:
    answers: dict[str, list[Any]] = {"text": [], "answer_start": []}
    if answer is not None:
        answers = {"text": [answer], "answer_start": [context.index(answer)]}
    return Row(f"sample:{question}", {"question": question, "context": context, "answers": answers})


def _filled(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _softmax(scores: Sequence[float]) -> list[float]:
    """
    >>> _softmax([0.0, 0.0])
    [0.5, 0.5]
    """
    most = max(scores, default=0.0)
    weights = [math.exp(score - most) for score in scores]
    return [weight / sum(weights) for weight in weights]


def _check(row: Row, no_answer: bool) -> None:
    for field in ("question", "context"):
        value = row.fields[field]
        if not _filled(value):
            raise UserError(f"{row.where}: {field}: a text was expected, found {str(value)[:60]!r}")
    answers, context = row.fields["answers"], row.fields["context"]
    texts, starts = (answers.get(key) if isinstance(answers, dict) else None for key in ("text", "answer_start"))
    if not isinstance(texts, list) or not isinstance(starts, list):
        raise UserError(f"{row.where}: answers: {WANTED} was expected, found {str(answers)[:60]!r}")
    if len(texts) != len(starts):
        raise UserError(f"{row.where}: answers: {len(texts)} in text, {len(starts)} in answer_start")
    if not texts and not no_answer:
        raise UserError(f"{row.where}: answers: none; set task.no_answer: true if a question may have none")
    for text, start in zip(texts, starts, strict=True):
        if not _filled(text):
            raise UserError(f"{row.where}: answers.text: a text was expected, found {str(text)[:60]!r}")
        if not isinstance(start, int) or isinstance(start, bool):
            raise UserError(f"{row.where}: answers.answer_start: a whole number was expected, found {start!r}")
        if start < 0 or context[start : start + len(text)] != text:
            place = context.find(text)
            found = context[max(start, 0) : max(start, 0) + len(text)]
            hint = f"; it is at {place}" if place >= 0 else ", nor anywhere else in it"
            raise UserError(
                f"{row.where}: answers: {text[:60]!r} is not at answer_start {start} of the context, where "
                f"{found[:60]!r} stands{hint}"
            )
