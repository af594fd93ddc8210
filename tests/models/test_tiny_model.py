"""Tiny models: any known base model becomes small, keeps its architecture, and reads every text."""

from __future__ import annotations

import pytest

from peftlab.errors import UserError
from peftlab.models.byte_tokenizer import FIRST_BYTE, byte_tokenizer
from peftlab.models.configs import stored_configs
from peftlab.models.tiny_model import VOCABULARY, shrink, small_config


@pytest.mark.parametrize("base", ["google-bert/bert-base-cased", "meta-llama/Llama-3.2-1B", "google-t5/t5-small"])
def test_a_tiny_config_has_the_architecture_and_at_most_two_layers(base: str) -> None:
    config = small_config(stored_configs()[base], 64)
    assert config.model_type == stored_configs()[base]["model_type"]
    assert config.num_hidden_layers <= 2
    assert config.hidden_size <= 64
    assert config.vocab_size == VOCABULARY


def test_a_model_that_is_narrow_already_keeps_its_width() -> None:
    assert shrink({"hidden_size": 32, "intermediate_size": 100, "num_hidden_layers": 9}, 64) == {
        "hidden_size": 32,
        "intermediate_size": 100,
        "num_hidden_layers": 2,
    }


def test_an_unknown_architecture_names_the_nearest_one() -> None:
    with pytest.raises(UserError, match=r"transformers has no architecture 'brt' \(did you mean 'bert'"):
        small_config({"model_type": "brt"}, 64)


@pytest.mark.parametrize("base", ["google-bert/bert-base-cased", "google-t5/t5-small"])
def test_every_byte_is_a_token_and_decodes_to_the_text(base: str) -> None:
    config = small_config(stored_configs()[base], 64)
    tokenizer = byte_tokenizer(config)
    text = "Naïve: 12 €"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(f" {text}".encode())  # the tokenizer adds a space
    assert min(ids) >= FIRST_BYTE
    assert tokenizer.decode(ids).strip() == text
    ends = tokenizer(text)["input_ids"][-1] == config.eos_token_id
    assert ends == config.is_encoder_decoder
