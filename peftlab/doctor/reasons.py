"""The closed list of true reasons for a refusal, and the known faults of the libraries."""

from __future__ import annotations

import functools
import re
import tomllib
from pathlib import Path

PREFIX = "prefix tuning needs past key-values, which"
REFUSALS = {
    "BitFit trains biases, and it has none": r"BitFit trains biases, and .* has none",
    "full fine-tuning needs weights that are not quantized": r"full fine-tuning changes the base model's weights",
    "its experts are 3-D parameters, which are not quantized": r"\w+ packs linear layers, and .* are experts stacked",
    "it takes no keys and values from outside": PREFIX + r".* accept: (its|it) ",
    "its cache holds other states than keys and values": PREFIX
    + r".*(conv state|cache of its own|matC_old|compression_weights)",
    "it keeps states of the batch before if the cache is not its own": PREFIX + r".*states of the batch before",
    "it reads no keys and values from outside": PREFIX + r".*does not require grad",
    "its keys and values have other sizes than PEFT makes": PREFIX + r".*(Sizes of tensors|size of tensor a)",
    "PEFT does not find the sizes of its attention": PREFIX + r".*(Please specify `|has no attribute '\w+';)",
    "PEFT extends the encoder's mask for a prefix of the decoder": r"PEFT extends the encoder's mask",
    "no sublayer takes a bottleneck adapter": r"adapter: no (feed-forward|attention|sublayer)",
    "no layers that make keys and values": r"no layers that make keys and values are known for",
    "it sees later tokens: no causal language model": r"sees the tokens after the one it predicts",
    "it is an encoder-decoder: seq2seq serves it": r"is an encoder-decoder: its decoder alone leaves weights unused",
    "it cannot be run on text alone": r"cannot be run on text alone",
    "it has no decoder that reads an encoder's output": r"has no decoder that reads an encoder's output",
    "its config has no decoder_start_token_id": r"has no decoder_start_token_id",
    "it has no linear layer that can be adapted": r"method\.targets: no layer is left to adapt",
    "PEFT renames tensors of its saved adapter": r"PEFT does not find all tensors of this adapter",
    "transformers has no head of it for the task": r"model: a \S+ cannot serve",
}
"""Name of a reason, and the pattern of the messages that give it."""


def refusal(message: str) -> str | None:
    """Name of the reason that a message gives, or None if it gives none of the list."""
    return next((name for name, pattern in REFUSALS.items() if re.search(pattern, message)), None)


@functools.cache
def _faults() -> list[dict[str, str]]:
    return list(tomllib.loads(Path(__file__).with_name("upstream.toml").read_text(encoding="utf-8"))["fault"])


def upstream(architecture: str, task: str, message: str) -> str | None:
    """The known fault of a library that a message shows, or None."""
    for fault in _faults():
        names = (fault["architecture"], fault.get("task", task))
        if (architecture, task) == names and re.search(fault["message"], message):
            return fault["reason"]
    return None
