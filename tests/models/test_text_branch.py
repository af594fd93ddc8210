"""Text branch of multimodal models."""

from __future__ import annotations

import pytest
import torch
import transformers

from peftlab.models.text_branch import TEXT, auto_class, counts_outside, is_part_of, outside, text_values
from peftlab.models.tiny_model import small_config
from tests.models import multimodal


@pytest.mark.parametrize("architecture", multimodal.CONFIGS)
def test_exactly_what_lies_outside_gets_no_gradient_from_text(architecture: str) -> None:
    config = multimodal.config(architecture)
    model = auto_class(TEXT, config).from_config(config)
    ids = torch.arange(2 * 9).view(2, 9) + 256
    model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.sum().backward()
    parts = outside(model)
    unreached = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert unreached == {name for name, _ in model.named_parameters() if is_part_of(name, parts)}
    assert unreached
    assert sum(counts_outside(model).values()) == sum(model.get_parameter(name).numel() for name in unreached)


def test_the_tower_in_an_encoder_lies_outside() -> None:
    model = transformers.AutoModelForSeq2SeqLM.from_config(small_config({"model_type": "t5gemma2"}, 64))
    ids = torch.arange(2 * 9).view(2, 9) + 256
    model(input_ids=ids, decoder_input_ids=ids).logits.sum().backward()
    parts = outside(model)
    assert parts == ("model.encoder.vision_tower", "model.encoder.multi_modal_projector")
    unreached = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert unreached == {name for name, _ in model.named_parameters() if is_part_of(name, parts)}


def test_a_model_of_text_has_nothing_outside() -> None:
    config = transformers.LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    with torch.device("meta"):
        assert outside(transformers.LlamaForCausalLM(config)) == ()
        assert outside(transformers.AutoModel.from_config(transformers.T5Config(num_layers=1))) == ()


def test_a_checkpoint_is_loaded_whole_unless_it_is_the_text_branch_alone() -> None:
    whole = transformers.AutoModelForImageTextToText
    assert auto_class(TEXT, multimodal.config("qwen3_vl")) is whole  # has no causal language model
    assert auto_class(TEXT, transformers.Llama4Config()) is whole  # has one, of the text branch alone
    text_only = transformers.Llama4Config(architectures=["Llama4ForCausalLM"])
    assert auto_class(TEXT, text_only) is transformers.AutoModelForCausalLM
    assert auto_class(TEXT, transformers.LlamaConfig()) is transformers.AutoModelForCausalLM
    assert auto_class(TEXT, transformers.Qwen2AudioConfig()) is transformers.AutoModelForMultimodalLM
    head = "AutoModelForSequenceClassification"
    assert auto_class(head, transformers.Gemma3Config()) is transformers.AutoModelForSequenceClassification


def test_values_of_the_text_branch_have_the_defaults_that_a_config_leaves_out() -> None:
    gemma = {"model_type": "gemma3", "text_config": {"hidden_size": 64}, "vision_config": {"hidden_size": 32}}
    assert text_values(gemma)["hidden_size"] == 64
    assert text_values(gemma)["max_position_embeddings"] == 131_072
    assert text_values({"model_type": "t5", "n_positions": 7}) == {"model_type": "t5", "n_positions": 7}
    assert text_values({"model_type": "of-its-own-code"}) == {"model_type": "of-its-own-code"}
