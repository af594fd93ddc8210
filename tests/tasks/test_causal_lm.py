"""Causal language modeling: encoding, targets, loss and perplexity."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from peftlab import metrics
from peftlab.cli.app import app
from peftlab.data.examples import Example, Row
from peftlab.errors import UserError
from peftlab.methods import METHODS, TrainingPlan
from peftlab.methods.full import Full
from peftlab.methods.p_tuning import PTuning
from peftlab.methods.prefix_tuning import PrefixTuning
from peftlab.methods.prompt_tuning import PromptTuning
from peftlab.recipe import load_recipe
from peftlab.tasks.causal_lm import CausalLM
from peftlab.tasks.multiple_choice import MultipleChoice
from peftlab.tasks.task import IGNORED, Task
from peftlab.training.loop import train
from peftlab.training.prediction import predict
from peftlab.training.settings import Seeds, Training
from peftlab.training.train_log import TrainLog
from peftlab.training.workload import Workload
from tests.contract.bases import tiny

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = [
    *("What is the capital of France? It is Paris.", "assistant user system\n\nTell me more, please.", "12 + 30 = 42"),
    *("one two three four", "one\n\n\ntwo"),
]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "It is Paris."},
    {"role": "user", "content": "Tell me more."},
    {"role": "assistant", "content": "12 + 30 = 42"},
]
LLAMA = {"num_key_value_heads": 2, "eos_token_id": 1, "max_position_embeddings": 256, "tie_word_embeddings": True}


def make_tokenizer(template: str | None = CHATML, *, trim: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE as of GPT-2, SmolLM and Qwen. Like theirs, it pads with the token that ends an answer."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=trim)
    inner.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    inner.train_from_iterator(TEXTS * 20, trainer)
    if trim:
        from tokenizers import processors

        inner.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|endoftext|>"]})
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="module")
def llama(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    return tiny("llama", "AutoModelForCausalLM", vocab_size=len(tokenizer), **LLAMA)


def chat(messages: object = TALK, where: str = "mine.jsonl:7") -> Row:
    return Row(where, {"messages": messages})


def text(words: str) -> Row:
    return Row("mine.txt:1", {"text": words})


def encoded(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, limit: int = 256, **settings: Any) -> Any:
    task = CausalLM(**settings).bind(rows)
    return task, task.encode(rows, tokenizer, limit)


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
    assert all(label in (IGNORED, token) for token, label in zip(*_columns(example), strict=True))


def _columns(example: Example) -> tuple[list[int], list[int]]:
    return example.features["input_ids"], example.features["labels"]


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


ROWS = [chat(), chat(TALK[1:3]), chat(TALK[3:]), chat([TALK[1], TALK[4]]), chat([*TALK, *TALK[1:]])]


def row_nats(task: CausalLM, model: PreTrainedModel, example: Example, padding: int) -> list[float]:
    """Cross-entropy of the targets in nats, for each row of a packed example."""
    batch = task.collate([example], padding)
    with torch.no_grad():
        logits = model(**task.model_inputs(batch, model)).logits[0, :-1]
    nats = cross_entropy(logits, batch["labels"][0, 1:], reduction="none", ignore_index=IGNORED)
    starts = [k for k, at in enumerate(example.features.get("position_ids", [0])) if at == 0]
    ends = [*starts[1:], len(example)]
    return [float(nats[max(start - 1, 0) : end - 1].sum()) for start, end in zip(starts, ends, strict=True)]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "qwen2", "mistral"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_have_the_loss_that_they_have_alone(
    tokenizer: PreTrainedTokenizerFast, architecture: str, attention: str
) -> None:
    task, result = encoded(ROWS, tokenizer, packing=True)
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 256, "attn_implementation": attention}
    keys = {} if architecture in ("gpt2", "gpt_neox") else {"num_key_value_heads": 2}
    model = tiny(architecture, "AutoModelForCausalLM", **sizes, **keys, **task.model_settings())
    packs = task.training_examples(result.examples, 200)
    assert len(packs) < len(ROWS)
    alone = [row_nats(task, model, Example({**e.features}, e.row), 0)[0] for e in result.examples]
    together = [nats for pack in packs for nats in row_nats(task, model, pack, 0)]
    assert sorted(together) == pytest.approx(sorted(alone), abs=1e-5 * max(alone))
    assert task.incompatibility(model) is None


def test_packing_fills_sequences_and_loses_no_token(tokenizer: PreTrainedTokenizerFast) -> None:
    task, result = encoded(ROWS * 4, tokenizer, packing=True)
    packs = task.training_examples(result.examples, 150)
    assert max(len(pack) for pack in packs) <= 150
    assert sorted(token for pack in packs for token in pack.features["labels"]) == sorted(
        label for example in result.examples for label in example.features["labels"]
    )
    assert len(packs) <= math.ceil(1.3 * sum(len(example) for example in result.examples) / 150)


def test_padding_does_not_change_the_loss_of_packed_rows(
    tokenizer: PreTrainedTokenizerFast, llama: PreTrainedModel
) -> None:
    task, result = encoded(ROWS, tokenizer, packing=True)
    packs = task.training_examples(result.examples, 150)
    llama.config.use_cache = False
    with torch.no_grad():
        padded = task.collate(packs, 0)
        together = float(task.loss(llama(**task.model_inputs(padded, llama)), padded))
        single = [task.collate([pack], 0) for pack in packs]
        separate = sum(float(task.loss(llama(**task.model_inputs(batch, llama)), batch)) for batch in single)
    llama.config.use_cache = True
    assert together == pytest.approx(separate, rel=1e-6)


@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [
        ("llama", {"use_cache": True}),  # with a cache, transformers does not separate packed rows
        ("opt", {"ffn_dim": 128, "word_embed_proj_dim": 64}),
        ("bloom", {"n_layer": 2, "n_head": 4}),
        ("falcon", {"alibi": True}),
    ],
)
def test_a_model_whose_packed_rows_see_each_other_is_refused(architecture: str, sizes: dict[str, Any]) -> None:
    model = tiny(architecture, "AutoModelForCausalLM", **{"use_cache": False, **sizes})
    rng_state = torch.get_rng_state()
    reason = CausalLM(packing=True).incompatibility(model)
    assert "a row sees the row packed before it; set task.packing: false" in str(reason)
    assert torch.equal(torch.get_rng_state(), rng_state)
    assert CausalLM().incompatibility(model) is None


@pytest.mark.parametrize("task", [CausalLM(), MultipleChoice()])
def test_a_model_that_sees_later_tokens_is_refused(task: Task) -> None:
    assert "bert sees the tokens after the one it predicts" in str(
        task.incompatibility(tiny("bert", "AutoModelForCausalLM"))
    )
    bart = tiny("bart", "AutoModelForCausalLM", d_model=64, decoder_layers=2, decoder_attention_heads=4)
    assert "bart is an encoder-decoder" in str(task.incompatibility(bart))
    for architecture in ("llama", "gpt2", "opt"):
        sizes = {"ffn_dim": 128, "word_embed_proj_dim": 64} if architecture == "opt" else {}
        assert task.incompatibility(tiny(architecture, "AutoModelForCausalLM", **sizes)) is None
    assert task.incompatibility(tiny("bert", "AutoModelForCausalLM", is_decoder=True)) is None


@pytest.mark.parametrize(
    ("model", "task", "says"),
    [
        ("google-bert/bert-base-cased", "causal_lm", "task: bert sees the tokens after the one it predicts"),
        ("google-bert/bert-base-cased", "multiple_choice", "task: bert sees the tokens after the one it predicts"),
        ("google-bert/bert-base-cased", "seq2seq", "model: a bert cannot serve seq2seq"),
        ("google/flan-t5-small", "seq2seq", None),
        ("Qwen/Qwen2.5-0.5B", "{kind: causal_lm, packing: true}", None),
        ("someone/unheard-of", "causal_lm", None),
    ],
)
def test_validation_refuses_a_base_whose_head_cannot_do_the_task(
    tmp_path: Path, model: str, task: str, says: str | None
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"model: {model}\ntask: {task}\ndata: x\nmethod: lora\n")
    done = CliRunner().invoke(app, ["validate", str(path)])
    assert done.exit_code == (2 if says else 0)
    assert (f"{path}:2: {says}" in done.stderr) if says else (": valid (lora, none, " in done.stdout)


@pytest.mark.parametrize("method", ["prefix_tuning", "prompt_tuning", "p_tuning"])
def test_virtual_tokens_and_packing_are_refused_at_validation(tmp_path: Path, method: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"model: Qwen/Qwen2.5-0.5B\ntask: {{kind: causal_lm, packing: true}}\ndata: x\nmethod: {method}\n")
    with pytest.raises(UserError, match=r"method: .* set task\.packing: false"):
        load_recipe(path)
    load_recipe(path, ["method.kind=lora"])


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


def fit(model: nn.Module, task: CausalLM, encoded: Any, method: Any, **options: Any) -> TrainLog:
    settings = {"steps": 4, "batch_examples": 4, "warmup": 0.0, "evaluate_every": 2, **options.pop("training", {})}
    return train(
        Workload(
            model=model,
            method=method,
            task=task,
            examples=task.training_examples(encoded.examples, 200),
            padding_token=0,
            settings=Training(**settings),
            learning_rate=1e-2,
            seeds=Seeds(),
            accelerator=Accelerator(cpu=True),
            evaluate=options.get("evaluate", lambda: ({"perplexity": 1.0}, [])),
        )
    )


def records(model: nn.Module, task: CausalLM, encoded: Any, tokenizer: PreTrainedTokenizerFast, tokens: int) -> Any:
    return predict(
        model,
        task=task,
        examples=encoded.examples,
        tokenizer=tokenizer,
        batch_tokens=tokens,
        accelerator=Accelerator(cpu=True),
        autocast=contextlib.nullcontext,
    )


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
        ids, labels = (torch.tensor(column) for column in _columns(example))
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
        tokens, labels = (torch.tensor(column) for column in _columns(example))
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
    fitted, new_tokens = task._fit_positions(model, prompt)
    assert torch.equal(fitted, prompt[-len(fitted) :])
    assert len(fitted) + new_tokens <= 64 - virtual
    half = 32 - virtual // 2
    assert len(fitted) == length or (len(fitted), new_tokens) == (half, half)
    assert isinstance(task._generate(model, prompt, make_tokenizer(), []), str)


def test_a_prompt_that_leaves_enough_positions_is_not_cut() -> None:
    model = tiny("gpt2", "AutoModelForCausalLM", n_positions=64, n_embd=64, n_layer=2, n_head=4)
    fitted, new_tokens = CausalLM(form="text", new_tokens=8)._fit_positions(model, torch.arange(56))
    assert (len(fitted), new_tokens) == (56, 8)
