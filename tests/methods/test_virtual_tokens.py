"""Prefix, prompt and P-tuning: supported architectures, positions, initialization from text, saved files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from peftlab.errors import UserError
from peftlab.methods import Method, TrainingPlan
from peftlab.methods.method import MethodContext
from peftlab.methods.p_tuning import PTuning
from peftlab.methods.prefix_tuning import PrefixTuning
from peftlab.methods.prompt_tuning import PromptTuning
from peftlab.recipe import load_recipe
from tests.contract.bases import tiny

SMALL = {"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64}
BOTH = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4}
BOTH |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "max_position_embeddings": 64}
T5 = {"d_ff": 128, "num_decoder_layers": 2, "d_kv": 16, "num_heads": 4, "decoder_start_token_id": 0}
IDS = torch.arange(3, 25).view(2, 11)


def plan(task_type: str, head: Iterable[str] = (), longest: int | None = 11) -> TrainingPlan:
    return TrainingPlan(
        optimizer_steps=4,
        task_type=task_type,
        head=tuple(head),
        longest_input=longest,
        tokenize=lambda text: [3 + ord(letter) % 90 for letter in text],
    )


def tokens(text: str) -> Tensor:
    encode = plan("").tokenize
    assert encode is not None
    return torch.tensor([encode(text)])


def inputs(model: nn.Module, ids: Tensor = IDS) -> dict[str, Tensor]:
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**batch, "decoder_input_ids": ids[:, :7]} if model.config.is_encoder_decoder else batch


def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model.eval()(**inputs(model, ids)).logits


def fit(model: nn.Module, steps: int = 2) -> None:
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2)
    for _ in range(steps):
        model.train()(**inputs(model)).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


# --- where they go ---------------------------------------------------------------------------------------------------

TOKEN_CLASSIFIERS = ["bert", "roberta", "xlm-roberta", "electra"]
DECODERS = ["gpt2", "llama", "qwen2", "mistral", "gemma", "phi", "opt", "gpt_neox"]
GROUPED = ["llama", "qwen2", "mistral", "gemma"]
ENCODER_DECODERS = ["t5", "bart"]


def model_of(architecture: str) -> tuple[PreTrainedModel, TrainingPlan]:
    if architecture in ENCODER_DECODERS:
        sizes = T5 if architecture == "t5" else BOTH
        return tiny(architecture, "AutoModelForSeq2SeqLM", **sizes), plan("SEQ_2_SEQ_LM")
    if architecture in DECODERS:
        own = SMALL if architecture in GROUPED else {"ffn_dim": 128, "word_embed_proj_dim": 64}
        return tiny(architecture, "AutoModelForCausalLM", **own), plan("CAUSAL_LM")
    own = {"pad_token_id": 1} if "roberta" in architecture else {}
    return tiny(architecture, "AutoModelForTokenClassification", **own), plan("TOKEN_CLS", ["classifier"])


@pytest.mark.parametrize("architecture", [*TOKEN_CLASSIFIERS, *DECODERS, *ENCODER_DECODERS])
def test_a_prefix_trains_in_every_supported_architecture(architecture: str) -> None:
    base, given = model_of(architecture)
    method = PrefixTuning(length=4)
    assert (
        method.incompatible_with(
            MethodContext(architecture=architecture, quantization="none", task_type=given.task_type)
        )
        is None
    )
    model = method.apply(base, given)
    model(**inputs(model)).logits.square().mean().backward()
    gradient = model.prompt_encoder["default"].embedding.weight.grad
    keys_and_values = gradient.view(4, 2 * 2, 32 if architecture in GROUPED else 64)
    assert keys_and_values.abs().amax(dim=2).gt(0).all()  # of every token in every layer


@pytest.mark.parametrize(
    "architecture",
    ["albert", "deberta", "deberta-v2", "distilbert", "eurobert", "falcon", "ibert", "modernbert", "mpnet"],
)
def test_an_architecture_without_past_key_values_is_refused_and_fails_in_peft(architecture: str) -> None:
    from peft import PrefixTuningConfig, get_peft_model

    reason = PrefixTuning().incompatible_with(
        MethodContext(architecture=architecture, quantization="none", task_type="TOKEN_CLS")
    )
    assert reason is not None
    assert architecture in reason
    base = tiny(architecture, "AutoModelForTokenClassification")
    with pytest.raises(UserError, match="needs past key-values"):
        PrefixTuning(length=4).apply(base, plan("TOKEN_CLS", ["classifier"]))
    with pytest.raises((ValueError, TypeError, RuntimeError, AttributeError, KeyError)):
        logits(get_peft_model(base, PrefixTuningConfig(task_type="TOKEN_CLS", num_virtual_tokens=4)))


@pytest.mark.parametrize("method", [PromptTuning(length=4), PTuning(length=4)], ids=lambda method: method.kind)
@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [
        ("albert", {"embedding_size": 32}),
        ("electra", {"embedding_size": 32}),
        ("deberta-v2", {}),
        ("distilbert", {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}),
        ("modernbert", {}),
    ],
)
def test_embedded_tokens_train_where_a_prefix_cannot(architecture: str, sizes: dict[str, Any], method: Method) -> None:
    base = tiny(architecture, "AutoModelForTokenClassification", **sizes)
    model = method.apply(base, plan("TOKEN_CLS", ["classifier"]))
    assert logits(model).shape == (2, 11, 2)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    fit(model)
    assert [name for name, p in model.named_parameters() if name in before and torch.equal(p, before[name])] == []


@pytest.mark.parametrize("kind", ["prefix_tuning", "prompt_tuning", "p_tuning"])
@pytest.mark.parametrize("architecture", ["roberta", "electra"])
def test_virtual_tokens_get_gradients_through_a_head_of_two_layers(architecture: str, kind: str) -> None:
    method = {"prefix_tuning": PrefixTuning, "prompt_tuning": PromptTuning, "p_tuning": PTuning}[kind](length=4)
    base = tiny(architecture, "AutoModelForSequenceClassification", pad_token_id=1)
    model = method.apply(base, plan("SEQ_CLS", ["classifier"]))
    assert logits(model).shape == (2, 2)
    model(**inputs(model)).logits[:, 0].sum().backward()
    assert model.prompt_encoder["default"].embedding.weight.grad.abs().max() > 1e-8


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bart"])
@pytest.mark.parametrize("method", [PromptTuning(length=4), PTuning(length=4)], ids=lambda method: method.kind)
def test_sequences_pooled_at_their_last_token_are_refused(architecture: str, method: Method) -> None:
    reason = method.incompatible_with(
        MethodContext(architecture=architecture, quantization="none", task_type="SEQ_CLS")
    )
    assert reason is not None
    assert architecture in reason
    assert (
        method.incompatible_with(MethodContext(architecture=architecture, quantization="none", task_type="CAUSAL_LM"))
        is None
    )
    sizes = BOTH if architecture == "bart" else {}
    base = tiny(architecture, "AutoModelForSequenceClassification", **sizes)
    with pytest.raises(UserError, match=architecture):
        method.apply(base, plan("SEQ_CLS", ["classification_head" if architecture == "bart" else "score"]))


# --- gradient checkpointing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_a_prefix_for_an_encoder_decoder_classifier_is_refused_with_the_reason(architecture: str) -> None:
    reason = PrefixTuning(length=4).incompatible_with(
        MethodContext(architecture=architecture, quantization="none", task_type="SEQ_CLS")
    )
    assert reason == f"PEFT extends the encoder's mask for a prefix that is in {architecture}'s decoder; use lora"


def test_a_prefix_with_gradient_checkpointing_is_refused_at_validation(tmp_path: Path) -> None:
    path = tmp_path / "prefix.yaml"
    path.write_text(
        "model: nowhere/to-be-found\ntask: token_classification\ndata: {id: nothing/here}\n"
        "method: prefix_tuning\ntraining: {gradient_checkpointing: true}\n"
    )
    with pytest.raises(UserError, match=r"prefix.yaml:4: method: prefix tuning .* gradient checkpointing"):
        load_recipe(path)


def test_apply_refuses_a_model_with_gradient_checkpointing() -> None:
    base, given = model_of("bert")
    base.gradient_checkpointing_enable()
    with pytest.raises(UserError, match="gradient checkpointing"):
        PrefixTuning().apply(base, given)


# --- positions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [PrefixTuning(length=4), PromptTuning(length=4)], ids=lambda method: method.kind)
@pytest.mark.parametrize(("architecture", "positions"), [("bert", 64), ("roberta", 62)])
def test_virtual_tokens_must_fit_in_addition_to_the_longest_input(
    architecture: str, positions: int, method: Method
) -> None:
    def base() -> PreTrainedModel:
        sizes = {"max_position_embeddings": 64, "pad_token_id": 1 if architecture == "roberta" else 0}
        return tiny(architecture, "AutoModelForTokenClassification", **sizes)

    longest = torch.arange(positions - 4)[None] % 90 + 3
    fits = method.apply(base(), plan("TOKEN_CLS", ["classifier"], positions - 4))
    assert logits(fits, longest).shape == (1, positions - 4, 2)
    with pytest.raises(UserError, match=f"4 virtual tokens .* need {positions + 1} positions, but {architecture} has"):
        method.apply(base(), plan("TOKEN_CLS", ["classifier"], positions - 3))


# --- where they reach ------------------------------------------------------------------------------------------------


def test_in_t5_the_prefix_affects_only_the_decoder_and_is_recorded_so() -> None:
    method = PrefixTuning(length=4)
    model = method.apply(*model_of("t5"))
    with torch.no_grad():
        states = model(**inputs(model)).encoder_last_hidden_state
        with method.disabled(model):
            base = model(**inputs(model))
        assert torch.equal(states, base.encoder_last_hidden_state)
        assert not torch.allclose(logits(model), base.logits, atol=1e-3)
    assert method.stats(model) == {"reaches": "decoder self-attention"}
    assert method.fidelity is not None
    assert "only to the decoder's self-attention" in method.fidelity


def test_in_bert_the_prefix_affects_self_attention_and_is_recorded_so() -> None:
    method = PrefixTuning(length=4)
    assert method.stats(method.apply(*model_of("bert"))) == {"reaches": "self-attention"}


@pytest.mark.parametrize("method", [PromptTuning(length=4), PTuning(length=4)], ids=lambda method: method.kind)
def test_in_t5_no_unused_embedded_token_is_created(method: Method) -> None:
    model = method.apply(*model_of("t5"))
    assert model.prompt_encoder["default"].embedding.weight.shape == (4, 64)


def test_heads_of_another_width_get_keys_and_values_of_that_width() -> None:
    odd = {
        **T5,
        "num_attention_heads": 6,
        "num_heads": 6,
        "num_decoder_layers": 3,
    }  # flan-t5-small has 6 heads of 64 in a width of 512
    model = PrefixTuning(length=4).apply(tiny("t5", "AutoModelForSeq2SeqLM", **odd), plan("SEQ_2_SEQ_LM"))
    assert model.prompt_encoder["default"].embedding.weight.shape == (4, 2 * 3 * 6 * 16)
    assert logits(model).shape == (2, 7, 97)


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_every_decoder_layer_has_its_own_prefix_also_when_loaded_by_peft(architecture: str, tmp_path: Path) -> None:
    from peft import PeftModel

    method = PrefixTuning(length=4)
    model = method.apply(*model_of(architecture))
    fit(model)
    method.save(model, tmp_path)
    alone = PeftModel.from_pretrained(model_of(architecture)[0], tmp_path)
    assert torch.allclose(logits(alone), logits(model), atol=1e-5)
    with torch.no_grad():
        caches = [each.get_prompt(1).self_attention_cache for each in (model, alone)]
    for layer in range(2):
        assert torch.equal(caches[0].layers[layer].keys, caches[1].layers[layer].keys)
    assert not torch.allclose(caches[0].layers[0].keys, caches[0].layers[1].keys)


# --- text at the start -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_prefix_initialized_from_text_equals_that_text_before_the_input(architecture: str) -> None:
    base, given = model_of(architecture)
    together = torch.cat([tokens("once").expand(2, -1), IDS], dim=1)
    expected = logits(base, together)[:, 4:]
    model = PrefixTuning(length=4, initial_text="once").apply(base, given)
    assert torch.allclose(logits(model), expected, atol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2"])
def test_a_prompt_initialized_from_text_equals_that_text_before_the_input(architecture: str) -> None:
    base, given = model_of(architecture)
    together = torch.cat([tokens("once").expand(2, -1), IDS], dim=1)
    expected = logits(base, together)[:, 4:]
    model = PromptTuning(length=4, initial_text="once").apply(base, given)
    assert torch.allclose(logits(model), expected, atol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "t5", "bart", "mistral"])
def test_a_prefix_depends_on_its_initial_text_in_other_architectures(architecture: str) -> None:
    vectors = []
    for text in ("once", "once", "upon"):
        base, given = model_of(architecture)
        model = PrefixTuning(length=6, initial_text=text).apply(base, given)
        vectors.append(model.prompt_encoder["default"].embedding.weight.detach())
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.allclose(vectors[0], vectors[2])


def test_initial_text_requires_a_tokenizer_tokens_and_no_projection() -> None:
    base, given = model_of("llama")
    with pytest.raises(UserError, match="'' has no tokens"):
        PrefixTuning(initial_text="").apply(base, given)
    with pytest.raises(UserError, match="requires a tokenizer"):
        PromptTuning(initial_text="once").apply(base, TrainingPlan(optimizer_steps=4, task_type="CAUSAL_LM"))
    with pytest.raises(ValidationError, match="projection"):
        PrefixTuning(initial_text="once", projection=True)


# --- what is saved ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "numbers"),
    [
        (PrefixTuning(length=4, projection=True), 2 * 2 * 4 * 64),
        (PTuning(length=4), 4 * 64),
        (PTuning(length=4, encoder="mlp"), 4 * 64),
    ],
    ids=["prefix", "lstm", "mlp"],
)
def test_the_network_that_computes_the_tokens_is_not_saved(method: Method, numbers: int, tmp_path: Path) -> None:
    model = method.apply(*model_of("bert"))
    fit(model)
    method.save(model, tmp_path)
    assert load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"].numel() == numbers
    assert json.loads((tmp_path / "adapter_config.json").read_text())["num_virtual_tokens"] == 4
    loaded = method.load(model_of("bert")[0], tmp_path)
    assert torch.equal(logits(loaded), logits(model))


def test_in_bfloat16_the_tokens_stay_float32_and_get_gradients() -> None:
    for method in (PrefixTuning(length=4), PromptTuning(length=4), PTuning(length=4)):
        base, given = model_of("bert")
        model = method.apply(base.bfloat16(), given)
        trainable = {name: p for name, p in model.named_parameters() if "prompt_encoder" in name}
        assert {p.dtype for p in trainable.values()} == {torch.float32}
        with torch.autocast("cpu", torch.bfloat16):
            model(**inputs(model)).logits.float().square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in trainable.values())
