"""Question answering: windows, labels, the loss, and one answer per row from its windows."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from peftlab.data.examples import Example, Row
from peftlab.data.hub import Hub
from peftlab.errors import UserError
from peftlab.loading.model import load_tokenizer
from peftlab.models.model import ModelFiles
from peftlab.tasks.question_answering import QuestionAnswering
from peftlab.tasks.task import IGNORED
from tests.tasks.questions import CONTEXT, LONG, row


@pytest.fixture(scope="module")
def tokenizer(minilm: ModelFiles) -> PreTrainedTokenizerBase:
    return load_tokenizer(minilm, QuestionAnswering())


def answer_at(example: Example, first: int, last: int) -> str:
    """The characters of the context from one token to another."""
    offsets = example.features["offsets"]
    return str(example.row.fields["context"])[offsets[2 * first] : offsets[2 * last + 1]]


def outputs_peaking_at(
    examples: Sequence[Example], *peaks: tuple[int, int, float] | None
) -> QuestionAnsweringModelOutput:
    """Logits of 0 except for one start and one end token per window, given as (start, end, logit)."""
    longest = max(len(example) for example in examples)
    start, end = torch.zeros(len(examples), longest), torch.zeros(len(examples), longest)
    for number, peak in enumerate(peaks):
        if peak is not None:
            start[number, peak[0]] = end[number, peak[1]] = peak[2]
    return QuestionAnsweringModelOutput(start_logits=start, end_logits=end)


def test_the_labels_of_a_window_point_at_the_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    for answer in ("in Vienna", "1791", "five", "Mozart"):
        (example,) = QuestionAnswering().encode([row(answer)], tokenizer, 128).examples
        assert answer_at(example, *example.features["labels"]) == answer


def test_every_answer_of_squad_can_be_read_back_from_its_labels(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = Hub(id="rajpurkar/squad/validation-1000").read()[0]["train"]
    assert len(rows) == 1000
    assert len({row.fields["title"] for row in rows}) == 48
    encoded = QuestionAnswering().bind(rows).encode(rows, tokenizer, 384)
    assert encoded.counts == {"truncated_questions": 0, "lost_answers": 0}
    exact = 0
    for example in encoded.examples:
        if example.features["labels"] != example.features["null"] * 2:
            actual, expected = answer_at(example, *example.features["labels"]), example.row.fields["answers"]["text"][0]
            assert expected in actual  # a token may be larger: "$5bn" of "a $5bn-a-year plan"
            exact += actual == expected
    assert exact >= 990


def test_every_answer_of_disfl_qa_is_in_its_passage() -> None:
    rows = Hub(id="google-research-datasets/disfl_qa/test-1000").read()[0]["train"]
    QuestionAnswering(no_answer=True).bind(rows)
    assert (len(rows), sum(not row.fields["answers"]["text"] for row in rows)) == (1000, 245)


def test_windows_of_a_long_context_overlap_and_cover_every_token(tokenizer: PreTrainedTokenizerBase) -> None:
    task = QuestionAnswering(stride=16)
    examples = task.encode([row(context=LONG), row()], tokenizer, 64).examples
    windows = [example for example in examples if example.row.fields["context"] == LONG]
    assert len(windows) > 3
    assert len(examples) == len(windows) + 1
    offsets = [[offset for offset in example.features["offsets"] if offset != IGNORED] for example in windows]
    overlaps = [len(set(one) & set(other)) for one, other in itertools.pairwise(offsets)]
    assert min(overlaps) >= 16
    tokens = tokenizer(LONG, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert {offset for window in offsets for offset in window} == {offset for pair in tokens for offset in pair}
    with_answer = [window for window in windows if window.features["labels"] != [0, 0]]
    assert 1 <= len(with_answer) < len(windows)
    assert {answer_at(window, *window.features["labels"]) for window in with_answer} == {"in Vienna"}


def test_a_window_without_the_answer_points_at_cls(tokenizer: PreTrainedTokenizerBase) -> None:
    first = QuestionAnswering().encode([row(context=LONG)], tokenizer, 64).examples[0]
    assert first.features["labels"] == [0, 0]
    assert first.features["input_ids"][0] == tokenizer.cls_token_id


def test_an_answer_longer_than_any_overlap_is_counted_as_lost(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = QuestionAnswering().encode([row(LONG.strip(), LONG), row()], tokenizer, 64)
    assert encoded.counts["lost_answers"] == 1


def test_a_question_that_is_too_long_is_an_error_or_truncated_and_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    long = row(question="where " * 40)
    with pytest.raises(UserError, match=r"mine.jsonl:7: question: 40 tokens, but at most 21 \(a third of a window\)"):
        QuestionAnswering().encode([long], tokenizer, 64)
    encoded = QuestionAnswering(truncate=True).encode([long], tokenizer, 64)
    assert encoded.counts["truncated_questions"] == 1
    assert encoded.examples[0].features["token_type_ids"].index(1) == 21 + 2  # [CLS] and [SEP]


@pytest.mark.parametrize("limit", [32, 33, 40, 65])
def test_the_widest_stride_and_the_longest_question_still_advance(
    tokenizer: PreTrainedTokenizerBase, limit: int
) -> None:
    task = QuestionAnswering(stride=limit // 3)
    examples = task.encode([row(context=LONG, question="where " * (limit // 3))], tokenizer, limit).examples
    assert max(len(example) for example in examples) <= limit
    with pytest.raises(UserError, match=f"task.stride: {limit // 3 + 1} tokens, but of a window of {limit} at most"):
        QuestionAnswering(stride=limit // 3 + 1).encode([row()], tokenizer, limit)


def test_encoding_leaves_no_truncation_in_the_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    QuestionAnswering().encode([row(context=LONG)], tokenizer, 64)
    assert tokenizer.backend_tokenizer.truncation is None


def test_the_best_span_of_all_windows_is_the_answer_of_the_row(tokenizer: PreTrainedTokenizerBase) -> None:
    task = QuestionAnswering()
    examples = task.encode([row(context=LONG), row()], tokenizer, 64).examples
    with_answer = [number for number, example in enumerate(examples) if example.features["labels"] != [0, 0]]
    peaks: list[tuple[int, int, float] | None] = [(0, 0, 9.0)] * len(examples)
    for number in with_answer:
        first, last = examples[number].features["labels"]
        peaks[number] = (first, last, 5.0)
    peaks[0] = (30, 30, 3.0)  # a window with a less likely span
    records = task.merge(task.decode(outputs_peaking_at(examples, *peaks), examples), examples)
    assert [record["predicted"] for record in records] == ["in Vienna", "in Vienna"]
    assert [(record["expected"], record["answers"]) for record in records] == [("in Vienna", ["in Vienna"])] * 2
    spans = records[0]["spans"]
    assert LONG[spans[0]["start"] : spans[0]["end"]] == spans[0]["text"] == "in Vienna"
    assert sum(span["text"] == "in Vienna" for span in spans) == 1  # though two overlapping windows contain it
    assert spans[0]["probability"] > spans[1]["probability"]


def test_spans_are_in_the_context_in_order_and_not_longer_than_max_answer(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    task = QuestionAnswering(max_answer=2)
    examples = task.encode([row()], tokenizer, 64).examples
    start = examples[0].features["token_type_ids"].index(1)
    for peak in ((1, 2, 9.0), (start + 5, start + 2, 9.0), (start, start + 2, 9.0)):
        (record,) = task.merge(task.decode(outputs_peaking_at(examples, peak), examples), examples)
        assert record["predicted"]
        for span in record["spans"]:
            assert 0 < len(tokenizer(span["text"], add_special_tokens=False)["input_ids"]) <= 2


@pytest.mark.parametrize(("threshold", "answered"), [(0.0, False), (5.0, True)])
def test_no_answer_is_predicted_if_its_score_exceeds_the_best_by_the_threshold(
    tokenizer: PreTrainedTokenizerBase, threshold: float, answered: bool
) -> None:
    task = QuestionAnswering(no_answer=True, no_answer_threshold=threshold)
    examples = task.encode([row(None)], tokenizer, 64).examples
    assert examples[0].features["labels"] == [0, 0]
    outputs = outputs_peaking_at(examples, (0, 0, 3.0))
    outputs.start_logits[0, 20] = outputs.end_logits[0, 20] = 2.0  # 4, against 6 for no answer
    (record,) = task.merge(task.decode(outputs, examples), examples)
    assert bool(record["predicted"]) == answered
    assert record["no_answer"] > record["spans"][0]["probability"]
    assert task.answer(record)["answer"] == record["predicted"]
    assert (task.answer(record)["start"] is not None) == answered


def test_a_window_with_an_answer_overrules_windows_without_one(tokenizer: PreTrainedTokenizerBase) -> None:
    task = QuestionAnswering(no_answer=True)
    examples = task.encode([row(context=LONG)], tokenizer, 64).examples
    peaks: list[tuple[int, int, float] | None] = [(0, 0, 9.0)] * len(examples)  # certain that the window has no answer
    for number, example in enumerate(examples):
        first, last = example.features["labels"]
        if first:
            peaks[number] = (first, last, 5.0)
    (record,) = task.merge(task.decode(outputs_peaking_at(examples, *peaks), examples), examples)
    assert record["predicted"] == "in Vienna"


def test_the_loss_sums_start_and_end_and_ignores_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    task = QuestionAnswering()
    examples = task.encode([row(), row(context=CONTEXT * 2)], tokenizer, 128).examples
    batch = task.collate(examples, 0)
    assert int(task.count_targets(batch)) == 4
    assert int(task.count_targets(task.without_targets(batch))) == 0
    generator = torch.Generator().manual_seed(0)
    start, end = (torch.randn(batch["input_ids"].shape, generator=generator) for _ in range(2))
    together = task.loss(QuestionAnsweringModelOutput(start_logits=start, end_logits=end), batch)
    alone = sum(
        task.loss(
            QuestionAnsweringModelOutput(start_logits=start[[i], : len(e)], end_logits=end[[i], : len(e)]),
            task.collate([e], 0),
        )
        for i, e in enumerate(examples)
    )
    assert float(together) == pytest.approx(float(alone), rel=1e-6)
    short = examples[0]
    first, last = short.features["labels"]
    logits = start[[0], : len(short)], end[[0], : len(short)]
    by_hand = sum(-float(torch.log_softmax(of, -1)[0, at]) for of, at in zip(logits, (first, last), strict=True))
    only = task.loss(
        QuestionAnsweringModelOutput(start_logits=logits[0], end_logits=logits[1]), task.collate([short], 0)
    )
    assert float(only) == pytest.approx(by_hand, rel=1e-5)


def with_answers(texts: object, starts: object) -> dict[str, Any]:
    return {"answers": {"text": texts, "answer_start": starts}}


FORMAT = 'answers: {"text": [...], "answer_start": [...]} was expected, found'


BAD: list[tuple[dict[str, Any], str]] = [
    (with_answers(["Vienna"], [0]), "'Vienna' is not at answer_start 0 of the context, where 'Mozart' is; it is at 16"),
    (with_answers(["Berlin"], [16]), "where 'Vienna' is, nor anywhere else in it"),
    (
        with_answers(["Vienna"], [16 - len(CONTEXT)]),
        "is not at answer_start -48",
    ),  # a negative index counts from the end in Python
    (with_answers(["Vienna"], ["16"]), "answers.answer_start: an integer was expected, found '16'"),
    (with_answers(["Vienna"], []), "answers: 1 in text, 0 in answer_start"),
    (with_answers([""], [0]), "answers.text: a string was expected, found ''"),
    (with_answers([], []), "answers: none; set task.no_answer: true if a question may have no answer"),
    (with_answers("Vienna", 16), FORMAT),
    ({"answers": ["Vienna"]}, FORMAT),
    ({"question": " "}, "question: a string was expected, found ' '"),
    ({"context": None}, "context: a string was expected, found 'None'"),
]


@pytest.mark.parametrize(("change", "says"), BAD)
def test_a_bad_row_names_file_line_and_field(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        QuestionAnswering().bind([row(), Row("mine.jsonl:8", {**row().fields, **change})])
    assert str(caught.value).startswith("mine.jsonl:8: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_constant_baseline_is_the_most_frequent_answer() -> None:
    train = [row("Vienna"), row("in Vienna"), row("in Vienna")]
    baseline = QuestionAnswering().constant_baseline(train, [row("Vienna"), row("in Vienna"), row("Mozart")])
    assert baseline["squad_exact_match"] == pytest.approx(1 / 3)
    assert baseline["squad_f1"] == pytest.approx((2 / 3 + 1) / 3)
    train, test = [row(None), row(None), row("Vienna")], [row(None), row("Vienna")]
    baseline = QuestionAnswering(no_answer=True).constant_baseline(train, test)
    assert baseline["squad_exact_match"] == 0.5


def test_no_answer_allows_rows_without_answers() -> None:
    QuestionAnswering(no_answer=True).bind([row(None)])


@pytest.mark.parametrize("text", ["Where?", '{"question": "Where?"}', "[1]", '{"question": "", "context": "x"}'])
def test_an_input_line_must_be_json_with_question_and_context(text: str) -> None:
    with pytest.raises(UserError, match=r'text:1: a JSON object \{"question": "...", "context": "..."\}'):
        QuestionAnswering().row_from_text(text, "text:1")
