"""`train_tokens`: rows of the embeddings that LoRA trains too, of new tokens and of known ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from peftlab.errors import UserError
from peftlab.loading.model import Base
from peftlab.loading.tokens import add_tokens
from peftlab.methods.lora import Lora
from peftlab.methods.method import MethodContext, TrainedToken, TrainingPlan
from peftlab.models.model import Model, ModelFiles
from peftlab.recipe import load_recipe
from peftlab.runs import artifact
from peftlab.runs.inference import merge
from peftlab.runs.run import run
from tests.conftest import RECIPE
from tests.contract.bases import tiny
from tests.methods.test_lora import perturbed
from tests.sampling import slow_after

CPU = torch.device("cpu")
NEW, KNOWN = 30522, 2395  # ids in MiniLM, which has 30,522 tokens
TOKENS = (TrainedToken(text="<new>", id=NEW, pieces=(7, 8)), TrainedToken(text="street", id=KNOWN, pieces=(KNOWN,)))
METHOD = Lora(rank=2, targets="attention", train_tokens=["<new>", "street"])
ROWS = "token_adapter.trainable_tokens_delta"
Load = Callable[..., Base]


def plan(task_type: str = "TOKEN_CLS", head: tuple[str, ...] = (), size: int = NEW) -> TrainingPlan:
    tokens = (replace(TOKENS[0], id=size), replace(TOKENS[1], id=9, pieces=(9,))) if size != NEW else TOKENS
    return TrainingPlan(optimizer_steps=9, task_type=task_type, head=head, longest_input=9, seed=0, tokens=tokens)


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    tokens = torch.tensor([ids])
    decoder = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        values: torch.Tensor = model.eval()(input_ids=tokens, **decoder).logits
    return values


def test_a_new_token_starts_as_the_mean_of_its_pieces_and_only_the_named_rows_train(base_of: Load) -> None:
    base = base_of()
    before = base.model.get_input_embeddings().weight.detach().clone()  # type: ignore[union-attr]
    known = logits(base.model, [101, KNOWN, 500, 102])
    model = METHOD.apply(base.model, plan(head=base.head))
    assert torch.equal(logits(model, [101, KNOWN, 500, 102]), known)
    [(name, rows)] = [(name, p) for name, p in model.named_parameters() if ROWS in name]
    assert torch.equal(rows[0], before[[7, 8]].mean(0))
    assert torch.equal(rows[1], before[KNOWN])
    model.train()(input_ids=torch.tensor([[101, KNOWN, NEW, 102]])).logits.sum().backward()
    assert rows.grad is not None
    assert (rows.grad.abs().sum(dim=1) > 0).all()
    with torch.no_grad():
        rows.add_(1)
    after = base.model.get_input_embeddings().weight.detach()  # type: ignore[union-attr]
    changed = (after[: len(before)] != before).any(dim=1).nonzero().flatten().tolist()
    assert changed == [KNOWN]
    assert METHOD.may_be_idle(name)


@pytest.mark.parametrize("quantization", slow_after(2, ["none", "nf4", "int8"]))
def test_the_adapter_alone_gives_the_bits_of_the_trained_model(
    base_of: Load, quantization: str, tmp_path: Path
) -> None:
    base = base_of(quantization)
    model = perturbed(METHOD.apply(base.model, plan(head=base.head)))
    ids = [101, NEW, 500, KNOWN, 102]
    METHOD.save(model, tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 2**18  # without the 45 MiB of all embeddings
    assert torch.equal(logits(METHOD.load(base_of(quantization).model, tmp_path), ids), logits(model, ids))


@pytest.mark.parametrize(
    ("kind", "auto_class", "task_type", "tied"),
    [
        ("llama", "AutoModelForCausalLM", "CAUSAL_LM", False),
        ("gpt2", "AutoModelForCausalLM", "CAUSAL_LM", True),
        ("gemma3_text", "AutoModelForCausalLM", "CAUSAL_LM", True),  # scales its embeddings
        ("t5", "AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM", True),
        ("m2m_100", "AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM", True),
    ],
)
def test_tied_and_separate_output_layers_train_their_rows_and_merge(
    kind: str, auto_class: str, task_type: str, tied: bool, tmp_path: Path
) -> None:
    base = tiny(kind, auto_class).requires_grad_(False)
    size = base.get_input_embeddings().num_embeddings
    model = perturbed(METHOD.apply(base, plan(task_type, size=size)))
    assert len([name for name, _ in model.named_parameters() if ROWS in name]) == (1 if tied else 2)
    ids = [3, 9, size, 8]
    expected = logits(model, ids)
    assert expected.shape[-1] == size + 1
    METHOD.merge(model).save_pretrained(tmp_path)  # type: ignore[operator]
    merged = getattr(transformers, auto_class).from_pretrained(tmp_path)
    torch.testing.assert_close(logits(merged, ids), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_smollm2_ties_its_output_to_the_trained_rows() -> None:
    folder = Model(id="HuggingFaceTB/SmolLM2-135M-Instruct").files().folder
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = add_tokens(tokenizer, METHOD.train_tokens)
    assert tokens[0].is_new
    model = METHOD.apply(base, replace(plan("CAUSAL_LM"), tokens=tokens))
    ids = tokenizer("Call <new>")["input_ids"]
    assert ids[-1] == tokens[0].id
    row = dict(model.named_parameters())[f"base_model.model.model.embed_tokens.{ROWS}.default"]
    before = logits(model, ids)
    with torch.no_grad():
        row[0] *= 2
    after = logits(model, ids[:-1])
    torch.testing.assert_close(after[0, -1, tokens[0].id], 2 * before[0, -2, tokens[0].id])


def test_added_tokens_stay_whole_and_known_ones_keep_their_id(minilm: ModelFiles) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm.folder)
    tokens = add_tokens(tokenizer, ["<tool>", "street"])
    assert [token.is_new for token in tokens] == [True, False]
    assert tokenizer.tokenize("main street <tool> x") == ["main", "street", "<tool>", "x"]
    assert tokenizer.decode(tokens[0].id, skip_special_tokens=True) == "<tool>"
    assert tokenizer.convert_ids_to_tokens(tokens[0].pieces) == ["<", "tool", ">"]


def test_a_run_saves_the_tokenizer_and_every_later_use_has_the_tokens(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    overrides = ["method.train_tokens=[Ave, street]", "training.steps=2", "training.evaluate_every=2"]
    run(load_recipe(path, overrides), tmp_path / "first")
    tuned = artifact.load(tmp_path / "first", device=CPU)
    assert tuned.tokenizer.tokenize("Oak Ave street") == ["oak", "Ave", "street"]
    assert merge(tmp_path / "first", tmp_path / "merged") < 1e-3
    merged = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "merged")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    ids = tokenizer("Oak Ave street")["input_ids"]
    assert NEW in ids
    torch.testing.assert_close(logits(merged, ids), logits(tuned.model, ids), atol=1e-4, rtol=1e-4)
    second = run(load_recipe(path, [*overrides, f"init_from={tmp_path / 'first'}"]), tmp_path / "second")
    assert second.init_from is not None
    rows = {
        name: load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")[
            f"base_model.model.bert.embeddings.word_embeddings.{ROWS}"
        ]
        for name in ("first", "second")
    }
    assert rows["first"].shape == rows["second"].shape
    assert not torch.equal(rows["first"], rows["second"])


def test_a_token_that_no_training_example_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    with pytest.raises(UserError, match=r"method.train_tokens: '<absent>' \(id 30522\) is in no training example"):
        run(load_recipe(path, ["method.train_tokens=[<absent>]"]), tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "auto_class", "said"),
    [
        ("phi", "AutoModelForCausalLM", r"lm_head \(Linear\) scales its result or adds a bias, which PEFT leaves out"),
        ("canine", "AutoModelForTokenClassification", "canine has no table of embeddings with a row per token"),
    ],
)
def test_a_base_whose_embeddings_peft_does_not_train_whole_is_refused(kind: str, auto_class: str, said: str) -> None:
    base = tiny(kind, auto_class).requires_grad_(False)
    head = ("classifier",) if kind == "canine" else ()
    with pytest.raises(UserError, match=said):
        METHOD.apply(base, plan("TOKEN_CLS" if head else "CAUSAL_LM", head, size=99))


@pytest.mark.parametrize("shards", [{"sharded": True}, {"zero_stage": 2}, {"zero_stage": 3}])
def test_sharded_models_are_refused_with_the_cure(shards: dict[str, Any]) -> None:
    context = MethodContext(architecture="bert", quantization="none", task_type="TOKEN_CLS", **shards)
    assert "data parallelism" in (METHOD.incompatible_with(context) or "")
    assert Lora().incompatible_with(context) is None


def test_targets_that_name_an_embedding_point_to_train_tokens() -> None:
    with pytest.raises(ValueError, match=r"'embed_tokens' holds an embedding of each token; .* in train_tokens"):
        Lora(targets=["q_proj", "model.embed_tokens"])
    with pytest.raises(ValueError, match="a token is listed twice"):
        Lora(train_tokens=["a", "a"])
