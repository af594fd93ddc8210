"""Causal language models: virtual tokens do not shift labels, and answers are generated from the prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from peftlab import metrics
from peftlab.methods import METHODS, TrainingPlan
from peftlab.methods.full import Full
from peftlab.methods.p_tuning import PTuning
from peftlab.methods.prefix_tuning import PrefixTuning
from peftlab.methods.prompt_tuning import PromptTuning
from peftlab.tasks.causal_lm import CausalLM
from peftlab.tasks.task import IGNORED
from tests.contract.bases import tiny
from tests.tasks.chats import LLAMA, ROWS, TALK, chat, columns, encoded, fit, make_tokenizer, records


def nats_by_hand(model: nn.Module, embeddings: Tensor, labels: Tensor, virtual: int) -> float:
    """Cross-entropy of the labels in nats, by hand, from embeddings that begin with `virtual` virtual tokens."""
    with torch.no_grad():
        logits = model(inputs_embeds=embeddings).logits[0]
    return sum(
        -float(logits[virtual + k - 1].log_softmax(-1)[label]) for k, label in enumerate(labels) if label != IGNORED
    )


@pytest.mark.parametrize("kind", [PromptTuning, PTuning])
def test_embedded_virtual_tokens_do_not_shift_the_labels(
    kind: Any, tokenizer: PreTrainedTokenizerFast, llama: PreTrainedModel
) -> None:
    task, result = encoded(ROWS[:2], tokenizer)
    method = kind(length=5)
    base = tiny("llama", "AutoModelForCausalLM", vocab_size=len(tokenizer), **LLAMA)
    model = method.apply(
        base,
        TrainingPlan(optimizer_steps=4, task_type="CAUSAL_LM", tokenize=lambda words: tokenizer(words)["input_ids"]),
    ).eval()
    prompts = model.get_prompt(batch_size=1)
    expected = 0.0
    for example in result.examples:
        ids, labels = (torch.tensor(column) for column in columns(example))
        embeddings = torch.cat([prompts, base.get_input_embeddings()(ids[None])], dim=1)
        expected += nats_by_hand(model.get_base_model(), embeddings, labels, 5)
    batch = task.collate(result.examples, 0)  # padded, two rows
    with torch.no_grad():
        loss = float(task.loss(model(**task.model_inputs(batch, model)), batch))
    assert loss == pytest.approx(expected, rel=1e-5)


def test_a_prefix_does_not_shift_the_labels(tokenizer: PreTrainedTokenizerFast) -> None:
    """A prefix initialized with a text has the effect of that text before the input."""
    task, result = encoded(ROWS[:2], tokenizer)
    base = tiny("llama", "AutoModelForCausalLM", vocab_size=len(tokenizer), **LLAMA)
    ids = tokenizer("Tell me more, please.")["input_ids"]
    expected = 0.0
    for example in result.examples:
        tokens, labels = (torch.tensor(column) for column in columns(example))
        embeddings = base.get_input_embeddings()(torch.cat([torch.tensor(ids), tokens])[None])
        expected += nats_by_hand(base, embeddings, labels, len(ids))
    method = PrefixTuning(length=len(ids), initial_text="Tell me more, please.")
    plan = TrainingPlan(optimizer_steps=4, task_type="CAUSAL_LM", tokenize=lambda words: tokenizer(words)["input_ids"])
    model = method.apply(base, plan).eval()
    batch = task.collate(result.examples, 0)
    with torch.no_grad():
        loss = float(task.loss(model(**task.model_inputs(batch, model)), batch))
    assert loss == pytest.approx(expected, rel=1e-4)


def greedy(model: nn.Module, prompt: list[int], stops: set[int], count: int) -> list[int]:
    """Greedy decoding without a cache: each token by a forward pass over all tokens before it."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            tensor = torch.tensor([ids])
            best = int(model(input_ids=tensor, attention_mask=torch.ones_like(tensor)).logits[0, -1].argmax())
        if best in stops:
            break
        ids.append(best)
    return ids[len(prompt) :]


@pytest.mark.parametrize("kind", ["none", "lora", "prefix_tuning", "prompt_tuning", "p_tuning"])
def test_an_answer_equals_greedy_decoding_without_a_cache(kind: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model: Any = tiny("llama", "AutoModelForCausalLM", vocab_size=len(tokenizer), **LLAMA)
    if kind != "none":
        method = METHODS[kind].model_validate({"length": 5} if kind != "lora" else {"rank": 2})
        model = method.apply(
            model,
            TrainingPlan(
                optimizer_steps=4, task_type="CAUSAL_LM", tokenize=lambda words: tokenizer(words)["input_ids"]
            ),
        ).eval()
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    task = CausalLM(form="chat", new_tokens=8)
    rows = [task.row_from_text("What is it?", "typed:1"), task.row_from_text("Tell me more.", "typed:2")]
    encoded = task.encode(rows, tokenizer, 256)
    prompts = [example.features["input_ids"] for example in encoded.examples]
    assert prompts[0] == tokenizer.apply_chat_template(
        rows[0].fields["messages"], add_generation_prompt=True, return_dict=False
    )
    answers = [task.answer(record) for record in records(model, task, encoded, tokenizer, 4096)]
    for prompt, answer, row in zip(prompts, answers, rows, strict=True):
        expected = greedy(model, prompt, {tokenizer.eos_token_id}, 8)
        assert expected
        assert answer == {
            "text": row.fields["messages"][0]["content"],
            "answer": tokenizer.decode(expected, skip_special_tokens=True).strip(),
        }


def test_an_answer_ends_at_a_stop_token(tokenizer: PreTrainedTokenizerFast, llama: PreTrainedModel) -> None:
    prompt = torch.tensor(tokenizer("What is it?")["input_ids"])
    tokens = greedy(llama, prompt.tolist(), set(), 8)
    stop = tokens[0]  # an untrained model repeats it
    answer = CausalLM(form="text", new_tokens=8)._generate(llama, prompt, tokenizer, [stop])
    assert answer == tokenizer.decode([stop], skip_special_tokens=True).strip()
    assert answer != tokenizer.decode(tokens, skip_special_tokens=True).strip()


def test_a_memorized_answer_is_generated_and_ends(tokenizer: PreTrainedTokenizerFast) -> None:
    """End to end: label mask, shift, end token, prompt and generation fit together."""
    rows = [chat([TALK[1], TALK[2]]), chat([TALK[3], TALK[4]])]
    task, result = encoded(rows, tokenizer, generate=2, new_tokens=30)
    model = tiny("llama", "AutoModelForCausalLM", vocab_size=len(tokenizer), **LLAMA)
    method = Full()
    model = method.apply(model, TrainingPlan(optimizer_steps=40, task_type="CAUSAL_LM"))  # type: ignore[assignment]
    fit(model, task, result, method, training={"steps": 40, "evaluate_every": 40})
    merged = records(model.eval(), task, result, tokenizer, 4096)
    assert [record["predicted"] for record in merged] == [TALK[2]["content"], TALK[4]["content"]]
    assert [record["expected"] for record in merged] == [TALK[2]["content"], TALK[4]["content"]]
    scores = metrics.score(task.metrics, task.to_metric_inputs(merged))
    assert scores["rougeL"] == 1.0
    one = task.model_copy(update={"generate": 1})
    merged = records(model, one, one.encode(rows, tokenizer, 256), tokenizer, 4096)
    assert [record["predicted"] for record in merged] == [TALK[2]["content"], None]
    assert metrics.score(one.metrics, one.to_metric_inputs(merged)) == pytest.approx(scores, rel=1e-6)


@pytest.mark.parametrize("virtual", [0, 20])
@pytest.mark.parametrize("length", [1, 40, 64, 100])
def test_an_answer_stays_within_the_positions_of_the_base(virtual: int, length: int) -> None:
    model: Any = tiny("gpt2", "AutoModelForCausalLM", n_positions=64, n_embd=64, n_layer=2, n_head=4)
    if virtual:
        model = (
            PromptTuning(length=virtual)
            .apply(model, TrainingPlan(optimizer_steps=4, task_type="CAUSAL_LM", head=(), longest_input=8))
            .eval()
        )
    task, prompt = CausalLM(form="text", new_tokens=128), torch.arange(length) % 90 + 3
    cut, new_tokens = task._fit_positions(model, prompt)
    assert torch.equal(cut, prompt[-len(cut) :])
    assert len(cut) + new_tokens <= 64 - virtual
    half = 32 - virtual // 2
    assert len(cut) == length or (len(cut), new_tokens) == (half, half)
    assert isinstance(task._generate(model, prompt, make_tokenizer(), []), str)


def test_a_prompt_that_leaves_enough_positions_is_not_cut() -> None:
    model = tiny("gpt2", "AutoModelForCausalLM", n_positions=64, n_embd=64, n_layer=2, n_head=4)
    cut, new_tokens = CausalLM(form="text", new_tokens=8)._fit_positions(model, torch.arange(56))
    assert (len(cut), new_tokens) == (56, 8)
