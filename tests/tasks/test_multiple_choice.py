"""Multiple choice by likelihood: the most likely choice is predicted, the correct one is learned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from peftlab import metrics
from peftlab.data.examples import Row
from peftlab.errors import UserError
from peftlab.tasks.multiple_choice import MultipleChoice
from peftlab.tasks.task import IGNORED
from tests.tasks.chats import make_tokenizer, records

ROWS = [
    Row("a", {"prompt": "What is the capital of France?", "answer": "Paris"}),
    Row("b", {"prompt": "Tell me more.", "answer": "12 + 30 = 42"}),
    Row("c", {"prompt": "Tell me more, please.", "answer": "It"}),
]


def nats(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: str, answer: str) -> tuple[float, int]:
    """Cross-entropy and number of the answer's tokens, its end token included, after the generation prompt, by hand."""
    messages = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    answer_ids = [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        logs = model(torch.tensor([[*ids, *answer_ids]])).logits[0].log_softmax(-1)
    return -sum(float(logs[len(ids) - 1 + k, token]) for k, token in enumerate(answer_ids)), len(answer_ids)


@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize("tokens", [1, 4096])
def test_the_most_likely_choice_is_predicted(
    by_token: bool, tokens: int, tokenizer: PreTrainedTokenizerFast, llama: PreTrainedModel
) -> None:
    task = MultipleChoice(by_token=by_token).bind(ROWS)
    assert task.choices == ["12 + 30 = 42", "It", "Paris"]
    encoded = task.encode(ROWS, tokenizer, 256)
    merged = records(llama, task, encoded, tokenizer, tokens)  # type: ignore[arg-type]
    for row, record in zip(ROWS, merged, strict=True):
        by_hand = {choice: nats(llama, tokenizer, row.fields["prompt"], choice) for choice in task.choices}
        scores = {choice: value / (count if by_token else 1) for choice, (value, count) in by_hand.items()}
        assert record["nats"] == pytest.approx(scores, rel=1e-4)
        assert record["predicted"] == min(scores, key=scores.__getitem__)
        assert record["expected"] == row.fields["answer"]
        probabilities = torch.tensor([-value for value in scores.values()]).softmax(0)
        assert record["probability"] == pytest.approx(float(probabilities.max()), rel=1e-4)
    assert set(metrics.score(task.metrics, merged)) == {"accuracy", "calibration_error"}
    assert encoded.rows == ROWS  # one row for its choices


def test_the_sample_rows_of_a_task_whose_rows_have_choices_can_be_encoded(tokenizer: PreTrainedTokenizerFast) -> None:
    task = MultipleChoice().bind([Row("d", {"prompt": "What?", "choices": ["no", "yes"], "answer": 1})])
    assert len(task.encode(task.sample_rows(), tokenizer, 256).examples) == 2 * len(task.sample_rows())


def test_only_the_correct_choice_is_trained_on(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [*ROWS, Row("d", {"prompt": "What?", "choices": ["no", "yes"], "answer": 1})]
    task = MultipleChoice().bind(rows)
    encoded = task.encode(rows, tokenizer, 256)
    assert len(encoded.examples) == 3 * 3 + 2
    targets = [
        tokenizer.decode([label for label in example.features["labels"] if label != IGNORED])
        for example in task.training_examples(encoded.examples, 256)
    ]
    assert targets == ["Paris<|im_end|>", "12 + 30 = 42<|im_end|>", "It<|im_end|>", "yes<|im_end|>"]


def test_without_a_chat_template_the_answer_is_on_its_own_line() -> None:
    bare = make_tokenizer(None)
    task = MultipleChoice().bind(ROWS)
    example = task.training_examples(task.encode(ROWS[:1], bare, 256).examples, 256)[0]
    assert bare.decode(example.features["input_ids"]) == "What is the capital of France?\nParis<|im_end|>"


def test_a_long_prompt_loses_its_beginning_but_no_choice(tokenizer: PreTrainedTokenizerFast) -> None:
    task = MultipleChoice(truncate=True).bind(ROWS)
    full = task.encode(ROWS, tokenizer, 256).examples
    limit = min(len(example) for example in full)
    encoded = task.encode(ROWS, tokenizer, limit)
    assert encoded.counts == {"truncated_prompts": 3}
    for one, other in zip(full, encoded.examples, strict=True):
        assert len(other) <= limit
        assert [t for t in one.features["labels"] if t != IGNORED] == [
            t for t in other.features["labels"] if t != IGNORED
        ]
    with pytest.raises(UserError, match=r"a: \d+ tokens with the choice .* set task\.truncate"):
        MultipleChoice().bind(ROWS).encode(ROWS, tokenizer, limit)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"prompt": "", "answer": "a"}, "prompt: a string was expected"),
        ({"prompt": "x", "answer": None}, "answer: a choice or its number was expected"),
        ({"prompt": "x", "answer": 2}, "answer: 2 is not the number of a choice"),
        (
            {"prompt": "x", "answer": "yess", "choices": ["yes", "no"]},
            "answer: 'yess' is not one of the choices (did you mean 'yes'?)",
        ),
        ({"prompt": "x", "answer": "yes", "choices": ["yes"]}, "choices: a list of at least two strings was expected"),
        ({"prompt": "x", "answer": "yes", "choices": ["yes", "yes"]}, "choices: one is listed twice"),
    ],
)
def test_a_bad_row_names_file_line_and_field(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        MultipleChoice().bind([*ROWS, Row("mine.jsonl:7", fields)])
    assert str(caught.value).startswith("mine.jsonl:7: ")
    assert complaint in str(caught.value)


@pytest.mark.parametrize(("answer", "choice"), [(1, "B"), ("A", "no"), ("B", "B"), ("C", "yes"), ("no", "no")])
def test_an_answer_is_a_choice_its_number_or_its_letter(answer: object, choice: str) -> None:
    choices = ["no", "B", "yes"]
    row = Row("a", {"prompt": "Is it?", "choices": choices, "answer": answer})
    task = MultipleChoice().bind([row])
    assert task._answer(row) == choice
    assert task.reference(row) == {"expected": choice}
    with pytest.raises(UserError, match="a: answer: 'D' is not one of the choices"):
        task.check_row(Row("a", {**row.fields, "answer": "D"}))


def test_the_same_answer_in_all_rows_is_refused() -> None:
    with pytest.raises(UserError, match=r"all answers are 'It'; give task\.choices"):
        MultipleChoice().bind(ROWS[2:])
