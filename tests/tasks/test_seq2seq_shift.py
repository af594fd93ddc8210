"""Decoder inputs of every encoder-decoder of transformers: the labels one position later."""

from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES as NAMES

from peftlab.models.tiny_model import small_config
from peftlab.tasks.seq2seq import SHIFT, Seq2Seq, decoder_inputs, shift_right
from peftlab.tasks.task import IGNORED

LABELS = torch.tensor([[9, 8, 7, 2], [6, 5, 2, IGNORED], [4, 2, IGNORED, IGNORED]])
WRAPPING = ("fsmt", "mbart", "plbart")  # the last token of a target, for mBART its language, starts the decoder
SET_WHEN_PUBLISHED = ("longt5", "mt5", "switch_transformers", "t5", "umt5")  # every published config has a start token
COMPOSED = ("encoder-decoder",)  # its config holds two others, so that there is none by default


def model_class(name: str) -> Any:
    return getattr(transformers, NAMES[name])


def model_of(name: str, **settings: Any) -> Any:
    config = small_config({"model_type": name, **settings}, 32)
    with torch.device("meta"):
        return model_class(name)(config)


SHIFTING = [name for name in NAMES if hasattr(model_class(name), SHIFT) and name not in COMPOSED]


def start_and_padding(model: Any) -> dict[str, int]:
    """What the architecture's config says; T5Gemma starts with the token of its decoder's config that begins a text."""
    text = model.config.get_text_config(decoder=True)
    gemma = model.config.model_type.startswith("t5gemma")
    return {
        "start": text.bos_token_id if gemma else model.config.decoder_start_token_id,
        "padding": text.pad_token_id,
    }


@pytest.mark.parametrize("name", SHIFTING)
def test_labels_shifted_by_hand_are_those_of_the_architectures_own_method(name: str) -> None:
    model = model_of(name, **({"decoder_start_token_id": 0} if name in SET_WHEN_PUBLISHED else {}))
    own = getattr(model, SHIFT)(labels=LABELS.clone())
    labels = LABELS.clone()
    assert decoder_inputs(model, labels).equal(own)
    assert labels.equal(LABELS)  # else the padding of FSMT's targets would be learned
    if name in WRAPPING:
        assert own.tolist() == [[2, 9, 8, 7], [2, 6, 5, 2], [2, 4, 2, model.config.pad_token_id]]
    else:
        assert shift_right(LABELS, **start_and_padding(model)).equal(own)


@pytest.mark.parametrize(("name", "start"), [("m2m_100", 2), ("nllb-moe", 2), ("blenderbot", 1)])
def test_an_architecture_without_a_method_starts_with_the_token_of_its_config(name: str, start: int) -> None:
    model = model_of(name, decoder_start_token_id=start)
    assert not hasattr(model, SHIFT)
    padding = model.config.pad_token_id
    assert decoder_inputs(model, LABELS).tolist() == [[start, 9, 8, 7], [start, 6, 5, 2], [start, 4, 2, padding]]
    assert Seq2Seq().incompatibility(model) is None


def test_a_model_without_an_encoder_is_refused() -> None:
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(small_config({"model_type": "llama"}, 32))
    assert Seq2Seq().incompatibility(model) == (
        "llama has no decoder that reads an encoder's output, which seq2seq needs"
    )


def test_a_config_that_does_not_say_how_a_text_starts_is_refused() -> None:
    model = model_of("t5", decoder_start_token_id=0)
    assert Seq2Seq().incompatibility(model) is None
    for of_start in ("decoder_start_token_id", "bos_token_id"):
        setattr(model.config, of_start, None)
    assert Seq2Seq().incompatibility(model) == (
        "the config of t5 has no decoder_start_token_id, with which a text starts"
    )
