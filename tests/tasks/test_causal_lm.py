"""Causal language modeling: encoding, targets, loss and perplexity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from peftlab import metrics
from peftlab.data.examples import Example, Row
from peftlab.errors import UserError
from peftlab.methods import METHODS, TrainingPlan
from peftlab.methods.full import Full
from peftlab.tasks.causal_lm import CausalLM
from peftlab.tasks.task import IGNORED
from tests.contract.bases import tiny
from tests.tasks.chats import CHATML, LLAMA, ROWS, TALK, chat, columns, encoded, fit, make_tokenizer, records, text


def target_texts(example: Example, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Consecutive target tokens, as text."""
    runs: list[list[int]] = [[]]
    for label in example.features["labels"]:
        if label == IGNORED:
            runs.append([])
        else:
            runs[-1].append(label)
    return [tokenizer.decode(run) for run in runs if run]


def test_answers_and_their_end_tokens_are_the_targets(tokenizer: PreTrainedTokenizerFast) -> None:
    _, result = encoded([chat()], tokenizer)
    example = result.examples[0]
    assert target_texts(example, tokenizer) == ["It is Paris.<|im_end|>", "12 + 30 = 42<|im_end|>"]
    assert example.features["input_ids"] == tokenizer.apply_chat_template(TALK, tokenize=True, return_dict=False)
    assert all(label in (IGNORED, token) for token, label in zip(*columns(example), strict=True))


def test_an_instruction_is_a_conversation_of_two_messages(tokenizer: PreTrainedTokenizerFast) -> None:
    row = Row("x", {"instruction": "Add.", "input": "12 + 30", "output": "42", "text": "of another form"})
    messages = [{"role": "user", "content": "Add.\n\n12 + 30"}, {"role": "assistant", "content": "42"}]
    task, one = encoded([row], tokenizer)
    _, two = encoded([chat(messages)], tokenizer)
    assert task.form == "instruction"
    assert one.examples[0].features == two.examples[0].features


def test_padding_with_the_end_token_keeps_the_end_token_of_answers_a_target(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    task, result = encoded([chat(), chat(TALK[1:3])], tokenizer)
    batch = task.collate(result.examples, tokenizer.pad_token_id)
    assert (batch["labels"] == tokenizer.eos_token_id).sum(dim=1).tolist() == [2, 1]
    assert batch["labels"][batch["attention_mask"] == 0].unique().tolist() == [IGNORED]
    assert int(task.count_targets(batch)) == sum(
        label != IGNORED for e in result.examples for label in e.features["labels"]
    )


@pytest.mark.parametrize("trim", [False, True])
def test_a_token_that_straddles_prompt_and_answer_is_no_target_and_counted(trim: bool) -> None:
    tokenizer = make_tokenizer(trim=trim)
    messages = [TALK[1], {"role": "assistant", "content": "\n\nIt is Paris."}]
    _, result = encoded([chat(messages)], tokenizer)
    assert result.counts["tokens_astride_an_answer"] == 1  # two line feeds, the first of which belongs to the prompt
    assert target_texts(result.examples[0], tokenizer) == ["\nIt is Paris.<|im_end|>"]


def test_a_template_that_shares_a_token_with_the_answer_is_refused() -> None:
    spaced = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
    spaced += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    with pytest.raises(UserError, match="which generation would never see"):
        encoded([chat()], make_tokenizer(spaced, trim=True))


def test_a_template_that_renders_a_prefix_differently_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    forgetful = CHATML.replace("message['content']", "(message['content'] if loop.last else '')")
    with pytest.raises(UserError, match="its answer cannot be located"):
        encoded([chat()], tokenizer, template=forgetful)


def test_a_tokenizer_without_chat_template_needs_one_from_the_recipe() -> None:
    bare = make_tokenizer(None)
    with pytest.raises(UserError, match=r"no chat template.*task\.template"):
        encoded([chat()], bare)
    _, result = encoded([chat()], bare, template=CHATML)
    assert target_texts(result.examples[0], bare) == ["It is Paris.<|im_end|>", "12 + 30 = 42<|im_end|>"]


def test_the_last_answer_gets_the_end_token_if_the_template_has_none() -> None:
    plain = "{% for m in messages %}{{ m['role'] + '\n' + m['content'] + '\n' }}{% endfor %}"
    plain += "{% if add_generation_prompt %}{{ 'assistant\n' }}{% endif %}"
    tokenizer = make_tokenizer(plain)
    _, result = encoded([chat(TALK[1:3])], tokenizer)
    assert target_texts(result.examples[0], tokenizer) == ["It is Paris.\n<|im_end|>"]


def test_a_template_with_the_date_renders_the_same_date_every_day() -> None:
    dated = (
        "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y %H %M %S %f') %}{%- endif %}"
    )
    tokenizer = make_tokenizer("{{ date_string + '\n' }}" + CHATML)
    tokenizer.chat_template = dated + tokenizer.chat_template
    _, result = encoded([chat()], tokenizer)
    assert "26 Jul 2024" in tokenizer.decode(result.examples[0].features["input_ids"])


def test_every_token_of_plain_text_but_the_first_is_a_target(tokenizer: PreTrainedTokenizerFast) -> None:
    task, result = encoded([text("It is Paris."), text("It is Paris.<|im_end|>")], tokenizer)
    assert task.form == "text"
    one, two = (example.features for example in result.examples)
    assert one == two
    assert one["labels"][0] == IGNORED  # no token precedes it
    assert one["labels"][1:] == one["input_ids"][1:]
    assert one["input_ids"].count(tokenizer.eos_token_id) == 1


def test_the_loss_is_the_sum_over_shifted_targets(tokenizer: PreTrainedTokenizerFast, llama: PreTrainedModel) -> None:
    task, result = encoded([chat(), chat(TALK[1:3])], tokenizer)
    batch = task.collate(result.examples, tokenizer.pad_token_id)
    with torch.no_grad():
        reference = llama(**batch).loss  # transformers' own mean
        ours = task.loss(llama(**task.model_inputs(batch, llama)), batch)
    assert float(ours) == pytest.approx(float(reference * task.count_targets(batch)), rel=1e-6)


def test_a_batch_without_targets_has_a_loss_of_zero_with_a_gradient(
    tokenizer: PreTrainedTokenizerFast, llama: PreTrainedModel
) -> None:
    task, result = encoded([chat()], tokenizer)
    batch = task.without_targets(task.collate(result.examples, 0))
    loss = task.loss(llama(**task.model_inputs(batch, llama)), batch)
    assert float(loss.detach()) == 0
    assert int(task.count_targets(batch)) == 0
    assert loss.requires_grad  # every process must run the backward pass


def test_truncation_is_counted_and_rows_without_targets_are_not_trained_on(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    with pytest.raises(UserError, match=r"mine\.jsonl:7: \d+ tokens, but at most 20 fit; set task\.truncate"):
        encoded([chat()], tokenizer, limit=20)
    full = encoded(ROWS[:2], tokenizer)[1].examples
    limit = len(full[1])
    task, result = encoded(ROWS[:2], tokenizer, limit=limit, truncate=True)
    lost = sum(label != IGNORED for label in full[0].features["labels"][limit:])
    assert result.counts["truncated_rows"] == 1
    assert result.counts["lost_targets"] == lost > 0
    task, result = encoded(ROWS[:2], tokenizer, limit=12, truncate=True)
    assert result.counts["rows_without_targets"] == 2
    assert task.training_examples(result.examples, 12) == []


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"messages": []}, "messages: a list of messages was expected"),
        ({"messages": [{"role": "user"}]}, "message 1: role and content were expected"),
        ({"messages": [{"role": "human", "content": "x"}]}, "unknown role 'human'; known are system, user"),
        ({"messages": [{"role": "user", "content": 3}]}, "content: a string was expected, found '3'"),
        ({"messages": TALK[:2]}, "no message of the assistant"),
        ({"messages": TALK[2:]}, "no message of the user before the assistant's first one"),
        ({"instruction": "Add.", "output": None}, "output: a string was expected, found 'None'"),
        ({"instruction": " ", "output": "x"}, "instruction: is empty"),
        ({"text": ""}, "text: is empty"),
        ({"instruction": "Add."}, "has instruction; expected messages, or instruction and output, or text"),
    ],
)
def test_a_bad_row_names_file_line_and_field(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        CausalLM().bind([Row("mine.jsonl:7", fields)])
    assert str(caught.value).startswith("mine.jsonl:7: ")
    assert complaint in str(caught.value)


def test_rows_of_another_format_than_the_first_are_refused() -> None:
    with pytest.raises(UserError, match=r"b: no messages, which task.form: chat needs"):
        CausalLM().bind([chat(), Row("b", {"text": "x"})])


def test_perplexity_does_not_depend_on_the_batch_size(
    tokenizer: PreTrainedTokenizerFast, llama: PreTrainedModel
) -> None:
    task, result = encoded(ROWS, tokenizer)
    scores = [metrics.score(task.metrics, records(llama, task, result, tokenizer, size)) for size in (1, 300, 4096)]
    batch = task.collate(result.examples, 0)
    with torch.no_grad():
        mean = llama(**batch).loss
    for score in scores:
        assert score["perplexity"] == pytest.approx(float(mean.double().exp()), rel=1e-5)
        assert score["perplexity"] == pytest.approx(scores[0]["perplexity"], rel=1e-6)


def test_the_checkpoint_of_lowest_perplexity_is_the_best(tokenizer: PreTrainedTokenizerFast) -> None:
    task, result = encoded(ROWS, tokenizer)
    model = tiny("llama", "AutoModelForCausalLM", vocab_size=len(tokenizer), **LLAMA)
    perplexities = iter([3.0, 2.0, 5.0])
    lora = METHODS["lora"](rank=2)  # type: ignore[call-arg]
    wrapped = lora.apply(model, TrainingPlan(optimizer_steps=6, task_type="CAUSAL_LM"))
    log = fit(
        wrapped,
        task,
        result,
        lora,
        training={"steps": 6},
        evaluate=lambda: ({"perplexity": next(perplexities)}, [{"a": 1}]),
    )
    assert log.best_step == 4


def test_full_fine_tuning_keeps_tied_embeddings_tied(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    task, result = encoded(ROWS, tokenizer)
    base = tiny("llama", "AutoModelForCausalLM", vocab_size=len(tokenizer), **LLAMA)
    start = base.get_input_embeddings().weight.detach().clone()
    method = Full()
    model: Any = method.apply(base, TrainingPlan(optimizer_steps=4, task_type="CAUSAL_LM"))
    fit(model, task, result, method)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert not torch.equal(model.lm_head.weight, start)
    method.save(model, tmp_path)
    fresh = tiny("llama", "AutoModelForCausalLM", vocab_size=len(tokenizer), **LLAMA)
    loaded: Any = method.load(fresh, tmp_path)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids).logits, model.eval()(ids).logits)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
