"""Checks of a model's attention: does it see later tokens, does a packed row see its neighbors?

No config says so, so it is tried. The answer depends on code and config, not on weights: a small model in float32 gives
it exactly. Int8 could not: outliers of one row change the rounding of others.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

THRESHOLD = 1e-4  # of the logits' standard deviation: float32 rounding is below it, an attended token above
WIDTH = 64  # hidden size of the small model


def no_decoder(config: PretrainedConfig) -> str | None:
    """Reason why a model of this config is not a causal language model; None if it is one.

    A model that attends to later tokens, such as BERT, is none, nor is an encoder-decoder.
    """
    import torch

    if getattr(type(config), "is_encoder_decoder", False):
        return f"{config.model_type} is an encoder-decoder: its decoder alone leaves weights unused; use seq2seq"
    with _small_model(config) as model:
        others = [name for name in required_arguments(model) if name != "input_ids"]
        if others:
            return f"{config.model_type} cannot be run on text alone: its forward requires {' and '.join(others)}"
        row = _tokens(9)
        other = torch.cat([row[:, :-1], row[:, -1:] ^ 1], dim=1)
        try:
            one, two = (model(input_ids=ids).logits[0, :-1] for ids in (row, other))
        except ValueError as error:
            if "pixel_values" not in str(error):
                raise
            return f"{config.model_type} cannot be run on text alone: {error}"
    if _differ(one, two):
        return f"{config.model_type} sees the tokens after the one it predicts: it is not a causal language model"
    return None


def required_arguments(model: PreTrainedModel) -> list[str]:
    """Names of the arguments without a default of the model's forward."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(model.forward).parameters.values()
    return [each.name for each in parameters if each.default is inspect.Parameter.empty and each.kind in named]


def packing_leak(config: PretrainedConfig) -> str | None:
    """Reason why rows cannot be packed for a model of this config; None if a row gives the same logits as alone."""
    import torch

    name = config.model_type
    with _small_model(config) as model:
        before, other, row = (_tokens(length) for length in (7, 7, 9))

        def logits(*rows: torch.Tensor) -> torch.Tensor:
            """Logits of the last row."""
            positions = torch.cat([torch.arange(part.shape[1]) for part in rows])[None]
            packed: torch.Tensor = model(input_ids=torch.cat(rows, dim=1), position_ids=positions).logits
            return packed[0, -row.shape[1] :]

        try:
            alone, after, after_other = logits(row), logits(before, row), logits(other, row)
        except TypeError as error:
            return f"packing: {name} takes no position ids ({error}); set task.packing: false"
    if _differ(after, after_other):
        return f"packing: in {name} a row sees the row packed before it; set task.packing: false"
    if _differ(after, alone):
        return f"packing: {name} gives a packed row other logits than alone; set task.packing: false"
    return None


@contextlib.contextmanager
def _small_model(config: PretrainedConfig) -> Iterator[PreTrainedModel]:
    """Two layers of the same architecture with random weights, in evaluation mode. Random states are restored."""
    import torch

    from peftlab.models.text_branch import TEXT, auto_class
    from peftlab.models.tiny_bound import probing
    from peftlab.models.tiny_model import smaller  # late: imports transformers

    small = smaller(config, WIDTH)
    vars(small).pop("quantization_config", None)
    probe = probing(f"the attention of {config.model_type}")
    with probe, torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=False), torch.no_grad():
        torch.manual_seed(0)
        yield (
            auto_class(TEXT, small)
            .from_config(
                small,
                dtype=torch.float32,
                attn_implementation=config._attn_implementation,
                trust_remote_code=False,  # a base's own class is registered since the base was loaded
            )
            .eval()
        )


def _tokens(length: int) -> torch.Tensor:
    """One row of random bytes, each of which is a token of every small model."""
    import torch

    from peftlab.models.byte_tokenizer import FIRST_BYTE

    return torch.randint(FIRST_BYTE, 2 * FIRST_BYTE, (1, length))


def _differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    return float((one - other).abs().max()) > THRESHOLD * float(one.std())
