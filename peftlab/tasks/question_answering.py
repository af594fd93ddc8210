"""Extractive question answering: the answer is a span of the context. A long context is read in overlapping windows."""

from __future__ import annotations

import collections
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from peftlab import metrics
from peftlab.data.examples import Encoded, Example, Row
from peftlab.errors import UserError
from peftlab.tasks.task import IGNORED, Task, pad

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

MIN_WINDOW = 32  # tokens: a third is for the question, a third may overlap
SPANS_IN_RECORD = 5
BATCH = 1000  # rows per call of the tokenizer
ANSWERS = '{"text": [...], "answer_start": [...]}'


class QuestionAnswering(Task):
    """Find the answer to a question in a text, as in SQuAD.

    A row has `question`, `context` and `answers`: {"text": [...], "answer_start": [...]}, positions in characters. The
    target of a window that lacks the answer is its [CLS] token.
    """

    kind: Literal["question_answering"] = "question_answering"
    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    task_type: ClassVar[str] = "QUESTION_ANS"
    fields: ClassVar[tuple[str, ...]] = ("question", "context", "answers")
    visible_fields: ClassVar[tuple[str, ...]] = ("question", "context")
    default_model: ClassVar[str | None] = "sentence-transformers/all-MiniLM-L6-v2"
    test_settings: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"no_answer": True})

    stride: int | None = Field(None, ge=0)
    """Tokens in which consecutive windows overlap, e.g. 64. Null: a third of a window, which is also the most."""
    no_answer: bool = False
    """Allow rows without answers, and predictions of "no answer", as in SQuAD 2."""
    no_answer_threshold: float = 0.0
    """"No answer" is predicted if its score exceeds the best answer's by more than this (sums of two logits)."""
    max_answer: int = Field(30, ge=1)
    """Maximum number of tokens of a predicted answer."""
    n_best: int = Field(20, ge=1)
    """Number of start and of end tokens per window, the most likely ones, that are combined to answers."""

    @property
    def selection(self) -> str:
        return "squad_f1"

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("squad",)

    @classmethod
    def row_formats(cls) -> list[tuple[dict[str, Any], Mapping[str, Any]]]:
        texts = {"question": "Who met Max?", "context": "Ada met Max."}
        answers: list[Any] = [{"text": ["Ada"], "answer_start": [0]}, [{"text": "Ada", "answer_start": 0}]]
        parts = [{"answers.text": "Ada", "answers.answer_start": start} for start in (0, "0")]
        return [
            (settings, {**texts, **fields})
            for settings in ({}, {"no_answer": True})
            for fields in (*({"answers": form} for form in answers), *parts)
        ]

    def normalize_row(self, row: Row) -> Row:
        """The row with SQuAD's `answers`. Other forms: a list of {text, answer_start}, one text and one position."""
        answers = _one_form(row.fields.get("answers"))
        return row if answers is row.fields.get("answers") else Row(row.where, {**row.fields, "answers": answers})

    def bind(self, rows: Iterable[Row]) -> QuestionAnswering:
        for row in rows:
            _check(row, self.no_answer)
        return self.model_copy()

    def model_settings(self) -> dict[str, Any]:
        return {"num_labels": 2}  # start and end

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, limit: int) -> Encoded:
        if limit < MIN_WINDOW:
            raise UserError(
                f"task.max_length: {limit} tokens are too few for question and context; the least is {MIN_WINDOW}"
            )
        stride = limit // 3 if self.stride is None else self.stride
        if stride > limit // 3:
            raise UserError(
                f"task.stride: {stride} tokens, but of a window of {limit} at most {limit // 3} may overlap"
            )
        counts = {"truncated_questions": 0, "lost_answers": 0}
        examples = []
        for start in range(0, len(rows), BATCH):
            chunk = rows[start : start + BATCH]
            questions, truncated = self._questions(chunk, tokenizer, limit // 3)
            counts["truncated_questions"] += truncated
            encoded = tokenizer(
                questions,
                [row.fields["context"] for row in chunk],
                truncation="only_second",
                max_length=limit,
                stride=stride,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
            row_numbers = encoded["overflow_to_sample_mapping"]
            for number, group in itertools.groupby(range(len(row_numbers)), key=row_numbers.__getitem__):
                windows = [_window(encoded, window, chunk[number], tokenizer) for window in group]
                examples += [Example(features, chunk[number]) for features, _ in windows]
                counts["lost_answers"] += bool(_answers(chunk[number])) and not any(has for _, has in windows)
        tokenizer.backend_tokenizer.no_truncation()  # else truncation would be saved with the tokenizer
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

        padding = batch["attention_mask"] == 0  # else the loss would depend on the other examples of the batch
        losses = [
            cross_entropy(logits.float().masked_fill(padding, -math.inf), labels, ignore_index=IGNORED, reduction="sum")
            for logits, labels in zip(
                (outputs.start_logits, outputs.end_logits), batch["labels"].unbind(dim=1), strict=True
            )
        ]
        return losses[0] + losses[1]

    def decode(self, outputs: Any, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """The best spans of each window, by the sum of the logits of start and end; `merge` turns them into answers."""
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
        counts = collections.Counter((_answers(row) or [""])[0] for row in train)
        ((best, _),) = counts.most_common(1)
        return metrics.score(
            self.metrics, self.to_metric_inputs([{"predicted": best, **self.reference(row)} for row in rows])
        )

    def row_from_text(self, text: str, where: str) -> Row:
        try:
            fields = json.loads(text)
        except ValueError:
            fields = None
        if not isinstance(fields, dict) or not all(_is_text(fields.get(name)) for name in ("question", "context")):
            raise UserError(
                f'{where}: a JSON object {{"question": "...", "context": "..."}} was expected, found {text[:60]!r}'
            )
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
        """The answer, its [start, end) in characters of the context, and its probability among `n_best` spans."""
        spans = record["spans"]
        best = spans[0] if record["predicted"] else {"start": None, "end": None, "probability": None}
        answer = {"question": record["question"], "answer": record["predicted"]}
        answer |= {key: best[key] for key in ("start", "end", "probability")}
        answer["others"] = [span for span in spans if span is not best]
        return answer | ({"no_answer": record["no_answer"]} if self.no_answer else {})

    def _questions(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, limit: int) -> tuple[list[str], int]:
        """The questions, at most `limit` tokens each, and the number of those that were truncated."""
        questions = [row.fields["question"].lstrip() for row in rows]
        tokens = tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        truncated = 0
        for number, (row, offsets) in enumerate(zip(rows, tokens["offset_mapping"], strict=True)):
            if len(offsets) > limit:
                if not self.truncate:
                    raise UserError(
                        f"{row.where}: question: {len(offsets)} tokens, but at most {limit} (a third of a window) fit; "
                        "set task.truncate: true to cut such questions and count them"
                    )
                questions[number] = questions[number][: offsets[limit - 1][1]]
                truncated += 1
        return questions, truncated

    def _spans(self, start: torch.Tensor, end: torch.Tensor, example: Example) -> dict[str, Any]:
        """Best spans of a window as (score, start, end), best first, and the score of "no answer"."""
        offsets = example.features["offsets"]
        context = [k for k in range(len(example)) if offsets[2 * k] != IGNORED]
        count = min(self.n_best, len(context))
        firsts = [context[k] for k in start[context].topk(count).indices]
        lasts = [context[k] for k in end[context].topk(count).indices]
        spans = [
            (float(start[first] + end[last]), offsets[2 * first], offsets[2 * last + 1])
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
        # The window with the lowest score of "no answer" decides: the others may lack the answer.
        null = min(window["null"] for window in windows)
        probabilities = _softmax([*(scores[span] for span in best), *([null] if self.no_answer else [])])
        spans = [
            {"text": context[first:last].strip(), "start": first, "end": last, "probability": round(probability, 6)}
            for (first, last), probability in zip(best, probabilities, strict=False)
        ]
        none = not best or (self.no_answer and null - scores[best[0]] > self.no_answer_threshold)
        record = {
            "question": row.fields["question"],
            "predicted": "" if none else spans[0]["text"],
            **({"expected": [*answers, ""][0], "answers": answers} if answers is not None else {"expected": None}),
            "spans": spans[:SPANS_IN_RECORD],
        }
        return record | ({"no_answer": round(probabilities[-1], 6)} if self.no_answer else {})


def _window(
    encoded: Any, number: int, row: Row, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, list[int]], bool]:
    """Features of one window, and whether it holds the answer.

    `offsets` are start and end, in characters of the context, of each token; -100 for a token of the question.
    """
    ids = encoded["input_ids"][number]
    spans = encoded["offset_mapping"][number]
    context = [k for k, sequence in enumerate(encoded.sequence_ids(number)) if sequence == 1]
    null = _null_position(ids, tokenizer)
    labels, has = [null, null], False
    if _answers(row):
        answers = row.fields["answers"]
        first, last = answers["answer_start"][0], answers["answer_start"][0] + len(answers["text"][0])
        has = bool(context) and spans[context[0]][0] <= first and last <= spans[context[-1]][1]
        if has:
            labels = [
                next(k for k in context if spans[k][1] > first),
                next(k for k in reversed(context) if spans[k][0] < last),
            ]
    offsets = [IGNORED] * 2 * len(ids)
    for k in context:
        offsets[2 * k : 2 * k + 2] = spans[k]
    features = {"input_ids": ids, "labels": labels, "offsets": offsets, "null": [null]}
    if "token_type_ids" in encoded:
        features["token_type_ids"] = encoded["token_type_ids"][number]
    return features, has


def _null_position(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """Position that stands for "no answer": [CLS], or the first token, as in transformers' run_qa.py."""
    return next((ids.index(t) for t in (tokenizer.cls_token_id, tokenizer.bos_token_id) if t in ids), 0)


def _answers(row: Row) -> list[str] | None:
    """The row's answers; None for a row without targets."""
    answers = row.fields.get("answers")
    return list(answers["text"]) if answers else None


def _row(question: str, context: str, answer: str | None) -> Row:
    answers: dict[str, list[Any]] = {"text": [], "answer_start": []}
    if answer is not None:
        answers = {"text": [answer], "answer_start": [context.index(answer)]}
    return Row(f"sample:{question}", {"question": question, "context": context, "answers": answers})


def _one_form(answers: Any) -> Any:
    """SQuAD's form of the answers, or the value itself if it is in this form or in none. An empty text is no answer.

    >>> _one_form([{"text": "Ada", "answer_start": 3}]), _one_form({"text": "Ada", "answer_start": "3"})
    ({'text': ['Ada'], 'answer_start': [3]}, {'text': ['Ada'], 'answer_start': [3]})
    >>> _one_form({"text": [""], "answer_start": [0]}), _one_form([])
    ({'text': [], 'answer_start': []}, {'text': [], 'answer_start': []})
    """
    parts = ("text", "answer_start")
    if isinstance(answers, (list, tuple)):
        if not all(isinstance(answer, dict) and answer.keys() >= set(parts) for answer in answers):
            return answers
        return _one_form({part: [answer[part] for answer in answers] for part in parts})
    if not isinstance(answers, dict) or not answers.keys() >= set(parts):
        return answers
    texts, starts = (answers[part] for part in parts)
    if texts is None or isinstance(texts, str):
        texts, starts = [texts or ""], [starts]
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        return answers
    pairs = [(text, start) for text, start in zip(texts, starts, strict=True) if text != ""]
    given = [int(start) if isinstance(start, str) and start.strip().isdigit() else start for _, start in pairs]
    form = {"text": [text for text, _ in pairs], "answer_start": given}
    return answers if form == answers else form


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _softmax(scores: Sequence[float]) -> list[float]:
    """Probabilities from scores.

    >>> _softmax([0.0, 0.0])
    [0.5, 0.5]
    """
    largest = max(scores, default=0.0)
    weights = [math.exp(score - largest) for score in scores]
    return [weight / sum(weights) for weight in weights]


def _check(row: Row, no_answer: bool) -> None:
    """Raise UserError if the row is bad, or has no answer though each question needs one."""
    for field in ("question", "context"):
        value = row.fields[field]
        if not _is_text(value):
            raise UserError(f"{row.where}: {field}: a string was expected, found {str(value)[:60]!r}")
    answers, context = row.fields["answers"], row.fields["context"]
    texts, starts = (answers.get(key) if isinstance(answers, dict) else None for key in ("text", "answer_start"))
    if not isinstance(texts, list) or not isinstance(starts, list):
        raise UserError(f"{row.where}: answers: {ANSWERS} was expected, found {str(answers)[:60]!r}")
    if len(texts) != len(starts):
        raise UserError(f"{row.where}: answers: {len(texts)} in text, {len(starts)} in answer_start")
    if not texts and not no_answer:
        raise UserError(f"{row.where}: answers: none; set task.no_answer: true if a question may have no answer")
    for text, start in zip(texts, starts, strict=True):
        if not _is_text(text):
            raise UserError(f"{row.where}: answers.text: a string was expected, found {str(text)[:60]!r}")
        if not isinstance(start, int) or isinstance(start, bool):
            raise UserError(f"{row.where}: answers.answer_start: an integer was expected, found {start!r}")
        if start < 0 or context[start : start + len(text)] != text:
            position = context.find(text)
            actual = context[max(start, 0) : max(start, 0) + len(text)]
            hint = f"; it is at {position}" if position >= 0 else ", nor anywhere else in it"
            raise UserError(
                f"{row.where}: answers: {text[:60]!r} is not at answer_start {start} of the context, where "
                f"{actual[:60]!r} is{hint}"
            )
