"""Layer-wise learning rates (Howard & Ruder, 2018; Clark et al., 2020): the lower a layer, the less it is moved.

A layer i of n, counted from 0, has rate * decay^(n - i), the embeddings below it decay^(n + 1), head and final norm the
rate itself. What a method adds to a layer (LoRA's matrices, an adapter, a bias) has the layer's rate. Of an
encoder-decoder each stack counts from its own top.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from torch import nn

from peftlab.errors import UserError

BELOW = re.compile(r"(^|[._])emb|project_in$", re.IGNORECASE)  # in names of modules: `layernorm_embedding`


def layer_rates(groups: list[dict[str, Any]], model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """The optimiser's groups, parted by layer, highest first. Raises UserError if all would have the same rate."""
    depths = layers_from_top(model)
    of = {id(parameter): depths[name] for name, parameter in model.named_parameters()}
    parted = []
    for group in groups:
        members: dict[int, list[nn.Parameter]] = defaultdict(list)
        for parameter in group["params"]:
            members[of[id(parameter)]].append(parameter)
        parted += [
            (depth, {**group, "params": own, "lr": group["lr"] * decay**depth}) for depth, own in members.items()
        ]
    if len({depth for depth, _ in parted}) < 2:
        raise UserError("training.layer_decay: what is trained here is not in different layers; leave it out")
    return [group for _, group in sorted(parted, key=lambda pair: pair[0])]


def layers_from_top(model: nn.Module) -> dict[str, int]:
    """For each parameter by name: 0 above the layers, 1 in the topmost, and so on; below them, one more."""
    stacks = [f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    stacks = [name for name in stacks if not any(name != other and name.startswith(other) for other in stacks)]
    sizes = {name: len(model.get_submodule(name.rstrip("."))) for name in stacks}  # type: ignore[arg-type]
    below = _below(model)
    depths: dict[str, int] = {}
    for name, _ in model.named_parameters():
        stack = next((stack for stack in stacks if name.startswith(stack)), None)
        if stack is None:
            depths[name] = max(sizes.values(), default=0) + 1 if name.startswith(below) else 0
        else:
            depths[name] = sizes[stack] - int(name.removeprefix(stack).partition(".")[0])
    return depths


def _below(model: nn.Module) -> tuple[str, ...]:
    """What comes before the layers, by name: embeddings, and the norms and projections of embeddings.

    Nothing else tells: of CamemBERT's modules the head is the first, of OPT's the last norm comes before the layers,
    and BART's embeddings have a norm behind them.
    """
    return tuple(f"{name}." for name, m in model.named_modules() if isinstance(m, nn.Embedding) or BELOW.search(name))
