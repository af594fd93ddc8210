"""Packing and attention: packed rows do not see each other, and a model that leaks is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from peftlab.cli.app import app
from peftlab.data.examples import Example
from peftlab.errors import UserError
from peftlab.recipe import load_recipe
from peftlab.tasks.causal_lm import CausalLM
from peftlab.tasks.multiple_choice import MultipleChoice
from peftlab.tasks.task import IGNORED, Task
from tests.contract.bases import tiny
from tests.tasks.chats import ROWS, encoded


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
