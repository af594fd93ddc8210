"""A chat tokenizer and a small Llama, overridden by tasks that need others."""

from __future__ import annotations

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.contract.bases import tiny
from tests.tasks.chats import LLAMA, make_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="module")
def llama(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    return tiny("llama", "AutoModelForCausalLM", vocab_size=len(tokenizer), **LLAMA)
