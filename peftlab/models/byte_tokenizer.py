"""A byte-level tokenizer for tiny models: one token per byte, so that every text has tokens and words have several."""

from __future__ import annotations

from typing import Any

import transformers

FIRST_BYTE = 256
"""Token id of byte 0. Special tokens have smaller ids."""
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'][0] + ':' + message['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


def byte_tokenizer(config: Any) -> transformers.PreTrainedTokenizerFast:
    """Tokenizer with the special tokens of a config. For an encoder-decoder it appends the end-of-sequence token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    text = config.get_text_config()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    padding = text.pad_token_id if isinstance(getattr(text, "pad_token_id", None), int) else 0
    eos = text.eos_token_id if isinstance(getattr(text, "eos_token_id", None), int) else None
    free = [number for number in range(FIRST_BYTE) if number not in (padding, eos)]
    names = {
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "mask_token": "<mask>",
    }
    vocabulary = dict(zip(names.values(), [padding, *free], strict=False))
    if eos is not None and eos != padding:
        vocabulary[names["eos_token"]] = eos
    vocabulary |= {letter: FIRST_BYTE + number for number, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    if config.is_encoder_decoder:
        eos_token = names["eos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {eos_token}",
            pair=f"$A {eos_token} $B {eos_token}",
            special_tokens=[(eos_token, vocabulary[eos_token])],
        )
    segments = getattr(text, "type_vocab_size", None) or 0
    inputs = ["input_ids", *(["token_type_ids"] if segments > 1 else []), "attention_mask"]
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names)
    fast.chat_template = CHAT_TEMPLATE
    return fast
