"""What a token sees: nothing after it, and in a pack of rows nothing of another row. Tried, for no config says so.

It is a question of code and config, not of weights: it is put to a small model in float32, where the answer is exact.
Over int8, outliers of one row change how others are rounded, packed or not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

FAR = 1e-4  # of a logit's spread: float32's rounding stays below it, a token that is seen does not
WIDTH = 64  # of the small model


def no_decoder(config: PretrainedConfig) -> str | None:
    """Why a model of this config is no causal language model, in words: it sees the tokens that it is to tell, as a
    BERT does, or is half of an encoder-decoder."""
    import torch

    if type(config)().is_encoder_decoder:
        return f"{config.model_type} is an encoder-decoder, whose decoder alone leaves weights unused; use seq2seq"
    with _small_model(config) as model:
        row = torch.randint(model.config.vocab_size, (1, 9))
        other = torch.cat([row[:, :-1], (row[:, -1:] + 1) % model.config.vocab_size], dim=1)
        one, two = (model(input_ids=ids).logits[0, :-1] for ids in (row, other))
    if _apart(one, two):
        return f"{config.model_type} sees the tokens after the one it predicts: it is no causal language model"
    return None


def leak(config: PretrainedConfig) -> str | None:
    """Whether a row in a pack sees the row before it, or its place in the pack, by a model of this config; in words."""
    import torch

    name = config.model_type
    with _small_model(config) as model:
        before, other, row = (torch.randint(model.config.vocab_size, (1, length)) for length in (7, 7, 9))

        def logits(*rows: torch.Tensor) -> torch.Tensor:
            positions = torch.cat([torch.arange(part.shape[1]) for part in rows])[None]
            found: torch.Tensor = model(input_ids=torch.cat(rows, dim=1), position_ids=positions).logits
            return found[0, -row.shape[1] :]

        try:
            alone, after, after_other = logits(row), logits(before, row), logits(other, row)
        except TypeError as error:
            return f"packing: {name} takes no positions ({error}); set task.packing: false"
    if _apart(after, after_other):
        return f"packing: in {name} a row sees the row packed before it; set task.packing: false"
    if _apart(after, alone):
        return f"packing: {name} computes a row otherwise behind another than alone; set task.packing: false"
    return None


@contextlib.contextmanager
def _small_model(config: PretrainedConfig) -> Iterator[PreTrainedModel]:
    """Two layers of the same architecture with random weights, in evaluation. Chance outside is left as it was."""
    import torch
    import transformers

    from peftlab.models.tiny_model import smaller  # here, for it imports transformers

    small = smaller(config, WIDTH)
    vars(small).pop("quantization_config", None)
    with torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=False), torch.no_grad():
        torch.manual_seed(0)
        yield transformers.AutoModelForCausalLM.from_config(
            small,
            dtype=torch.float32,
            attn_implementation=config._attn_implementation,
            trust_remote_code=False,  # a base's own class is registered since it was loaded
        ).eval()


def _apart(one: torch.Tensor, other: torch.Tensor) -> bool:
    return float((one - other).abs().max()) > FAR * float(one.std())
