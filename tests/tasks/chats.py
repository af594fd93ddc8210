"""A chat tokenizer, a small Llama's sizes, rows and a training loop for the tests of causal language models."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast

from peftlab.data.examples import Example, Row
from peftlab.tasks.causal_lm import CausalLM
from peftlab.training.loop import train
from peftlab.training.prediction import predict
from peftlab.training.settings import Seeds, Training
from peftlab.training.train_log import TrainLog
from peftlab.training.workload import Workload

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


def chat(messages: object = TALK, where: str = "mine.jsonl:7") -> Row:
    return Row(where, {"messages": messages})


def text(words: str) -> Row:
    return Row("mine.txt:1", {"text": words})


def encoded(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, limit: int = 256, **settings: Any) -> Any:
    task = CausalLM(**settings).bind(rows)
    return task, task.encode(rows, tokenizer, limit)


def columns(example: Example) -> tuple[list[int], list[int]]:
    return example.features["input_ids"], example.features["labels"]


ROWS = [chat(), chat(TALK[1:3]), chat(TALK[3:]), chat([TALK[1], TALK[4]]), chat([*TALK, *TALK[1:]])]


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
