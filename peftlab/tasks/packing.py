"""Packing: several rows in one sequence, each with its own positions, and none that sees another."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftlab.examples import Example

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

FAR = 1e-4  # of a logit's spread: float32's rounding stays below it, a neighbour that is seen does not
WIDTH = 64  # of the model that is asked


def packed(examples: Sequence[Example], limit: int) -> list[Example]:
    """Examples of at most `limit` tokens with `position_ids` that begin anew with each row; longest first, best fit."""
    bins: list[list[Example]] = []
    room: list[tuple[int, int]] = []  # tokens left and number of each bin, sorted
    for example in sorted(examples, key=len, reverse=True):
        place = bisect.bisect_left(room, (len(example), 0))
        left, number = room.pop(place) if place < len(room) else (limit, len(bins))
        if number == len(bins):
            bins.append([])
        bins[number].append(example)
        bisect.insort(room, (left - len(example), number))
    return [_joined(rows) for rows in bins]


def _joined(rows: Sequence[Example]) -> Example:
    features = {
        "input_ids": [token for row in rows for token in row.features["input_ids"]],
        "labels": [label for row in rows for label in row.features["labels"]],
        "position_ids": [position for row in rows for position in range(len(row))],
    }
    return Example(features, rows[0].row)


def leak(config: PretrainedConfig) -> str | None:
    """Whether a row in a pack sees the row before it, or its place in the pack, by a model of this config; in words.

    It is a question of code and config, not of weights: it is put to a small model in float32, where the answer is
    exact. Over int8, a row's outliers change how all rows of a batch are rounded, packed or not.
    """
    import torch
    import transformers

    from peftlab.small_model import small_config  # here, for it imports transformers

    values = config.to_dict()
    values.pop("quantization_config", None)
    small = small_config(values, WIDTH)
    name = config.model_type
    with torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=False), torch.no_grad():
        torch.manual_seed(0)
        before, other, row = (torch.randint(small.vocab_size, (1, length)) for length in (7, 7, 9))
        model = transformers.AutoModelForCausalLM.from_config(
            small, dtype=torch.float32, attn_implementation=config._attn_implementation
        ).eval()

        def logits(*rows: torch.Tensor) -> torch.Tensor:
            positions = torch.cat([torch.arange(part.shape[1]) for part in rows])[None]
            found: torch.Tensor = model(input_ids=torch.cat(rows, dim=1), position_ids=positions).logits
            return found[0, -row.shape[1] :]

        try:
            alone, after, after_other = logits(row), logits(before, row), logits(other, row)
        except TypeError as error:
            return f"packing: {name} takes no positions ({error}); set task.packing: false"
    tolerance = FAR * float(alone.std())
    if float((after - after_other).abs().max()) > tolerance:
        return f"packing: in {name} a row sees the row packed before it; set task.packing: false"
    if float((after - alone).abs().max()) > tolerance:
        return f"packing: {name} computes a row otherwise behind another than alone; set task.packing: false"
    return None
