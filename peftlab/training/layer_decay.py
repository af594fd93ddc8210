"""Layer-wise learning rates (Howard & Ruder, 2018; Clark et al., 2020): lower layers learn more slowly.

Layer i of n, counted from 0, has the learning rate lr * decay^(n - i), the embeddings below have lr * decay^(n + 1),
head and final norm have lr. Parameters that a method adds to a layer (LoRA's matrices, an adapter, a bias) have the
layer's rate. Each stack of an encoder-decoder counts from its own top.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from torch import nn

from peftlab.errors import UserError

BELOW = re.compile(r"(^|[._])emb|project_in$", re.IGNORECASE)  # names of modules, e.g. `layernorm_embedding`


def layer_rates(groups: list[dict[str, Any]], model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Split the optimizer's groups by layer, highest first. Raises UserError if all would have the same rate."""
    depths = layers_from_top(model)
    of = {id(parameter): depths[name] for name, parameter in model.named_parameters()}
    split = []
    for group in groups:
        members: dict[int, list[nn.Parameter]] = defaultdict(list)
        for parameter in group["params"]:
            members[of[id(parameter)]].append(parameter)
        split += [
            (depth, {**group, "params": parameters, "lr": group["lr"] * decay**depth})
            for depth, parameters in members.items()
        ]
    if len({depth for depth, _ in split}) < 2:
        raise UserError("training.layer_decay: all trained parameters are in the same layer; leave it out")
    return [group for _, group in sorted(split, key=lambda pair: pair[0])]


def layers_from_top(model: nn.Module) -> dict[str, int]:
    """Depth of each parameter by name: 0 above the layers, 1 in the topmost layer, and so on down to the embeddings."""
    stacks = [f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    stacks = [name for name in stacks if not any(name != other and name.startswith(other) for other in stacks)]
    sizes = {name: len(model.get_submodule(name.rstrip("."))) for name in stacks}  # type: ignore[arg-type]
    trained = [name for name in stacks if _is_trained(model.get_submodule(name.rstrip(".")))]
    lowest = max((sizes[name] for name in trained or stacks), default=0) + 1  # a frozen vision tower may be deeper
    below = _below(model)
    depths: dict[str, int] = {}
    for name, _ in model.named_parameters():
        stack = next((stack for stack in stacks if name.startswith(stack)), None)
        if stack is None:
            depths[name] = lowest if name.startswith(below) else 0
        else:
            depths[name] = sizes[stack] - int(name.removeprefix(stack).partition(".")[0])
    return depths


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _below(model: nn.Module) -> tuple[str, ...]:
    """Name prefixes of the modules below the layers: embeddings, and their norms and projections.

    The order of modules does not say it: CamemBERT's head is its first module, OPT's final norm comes before its
    layers, and BART's embeddings are followed by a norm.
    """
    return tuple(f"{name}." for name, m in model.named_modules() if isinstance(m, nn.Embedding) or BELOW.search(name))
