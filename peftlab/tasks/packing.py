"""Packing: several rows in one sequence, each with its own positions, and none that sees another."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from peftlab.examples import Example

if TYPE_CHECKING:
    import torch

FAR = 1e-2  # of a logit's size: rounding and int8's outliers stay below it, a neighbour that is seen does not


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


def leak(model: torch.nn.Module) -> str | None:
    """Whether a row in a pack sees the row before it, or its place in the pack, by `model` as it is; in words."""
    import torch

    config: Any = model.config
    vocabulary, device = config.get_text_config().vocab_size, next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    before, other, row = (torch.randint(vocabulary, (1, length), generator=generator) for length in (7, 7, 9))

    def logits(*rows: torch.Tensor) -> torch.Tensor:
        positions = torch.cat([torch.arange(part.shape[1]) for part in rows])[None]
        inputs = {"input_ids": torch.cat(rows, dim=1).to(device), "position_ids": positions.to(device)}
        found: torch.Tensor = model(**inputs).logits[0, -row.shape[1] :].float()
        return found

    was, name = model.training, config.model_type
    model.eval()
    try:
        with torch.no_grad():
            alone, after, after_other = logits(row), logits(before, row), logits(other, row)
    except TypeError as error:
        return f"packing: {name} takes no positions ({error}); set task.packing: false"
    finally:
        model.train(was)
    size = float(alone.std()) or 1.0
    if float((after - after_other).abs().max()) > FAR * size:
        return f"packing: in {name} a row sees the row packed before it; set task.packing: false"
    if float((after - alone).abs().max()) > 5 * FAR * size:
        return f"packing: {name} computes a row otherwise behind another than alone; set task.packing: false"
    return None
