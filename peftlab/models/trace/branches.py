"""Linear layers that an adapter cannot train: the task does not run them, or their weights are read directly."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Mapping

from torch import nn
from transformers.pytorch_utils import Conv1D

from peftlab.models.fact_types import matching
from peftlab.models.trace.recording import Recording

NOT_RUN = "the task does not run it"
NO_GRADIENT = "it gets no gradient"
OWN_FORWARD = "its forward is not that of a linear layer"
# A weight that is an argument of a fused kernel, on a line of its own as formatters put it. Others are met when they
# run: Bloom's slices and DeBERTa's chunks of a weight belong to paths that a training does not take.
_READ = r"^\s*(?:\w+=)?self\.{}\.weight,?$"


def left_out(model: nn.Module, recording: Recording) -> dict[str, str]:
    """Full names of the linear layers that an adapter cannot train, with the reasons. Gradients must be there."""
    output = model.get_output_embeddings()  # type: ignore[operator]
    ran = recording.names
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Linear, Conv1D)) or module is output:
            continue
        owner = model.get_submodule(name.rpartition(".")[0])
        gradient = module.weight.grad
        if type(module).forward not in (nn.Linear.forward, Conv1D.forward) and not _multiplies(module):
            found[name] = OWN_FORWARD
        elif reads_weight(type(owner), name.rpartition(".")[2]) or (name not in ran and gradient is not None):
            found[name] = f"{type(owner).__name__} reads its weight directly"
        elif name not in ran:
            found[name] = NOT_RUN
        elif gradient is None or not gradient.any():
            found[name] = NO_GRADIENT
    return found


def _multiplies(module: nn.Linear | Conv1D) -> bool:
    """True if a forward of its own computes what a linear layer computes."""
    import torch

    if isinstance(module, Conv1D):
        return False
    source = torch.linspace(-1, 1, 3 * module.in_features).view(1, 3, module.in_features).to(module.weight)
    with torch.no_grad():
        try:
            output = module(source)
        except RuntimeError:  # of another shape: DeepSeek-V4's grouped layer takes (..., groups, features)
            return False
        return isinstance(output, torch.Tensor) and torch.allclose(
            output, nn.functional.linear(source, module.weight, module.bias), rtol=1e-4, atol=1e-5
        )


def reads_weight(owner: type[nn.Module], child: str) -> bool:
    """True if the code of a class reads the weight of this child other than by calling it."""
    if not child.isidentifier():
        return False
    try:
        source = textwrap.dedent(inspect.getsource(owner))
    except (OSError, TypeError):
        return False
    bodies = re.split(r"\n    def ", source)
    code = "\n".join(body for body in bodies[1:] if not re.match(r"(__init__|_?init_weights|_tie)", body))
    return re.search(_READ.format(re.escape(child)), code, re.MULTILINE) is not None


def by_pattern(model: nn.Module, names: Mapping[str, str], patterns: Mapping[str, list[str]]) -> dict[str, str]:
    """Reasons by pattern, of the patterns whose layers are all in `names`, or all those of the last of like modules."""
    reasons = {}
    for pattern, members in patterns.items():
        dead = [name for name in members if name in names]
        if len(dead) == len(members):
            reasons[pattern] = names[members[0]]
        elif dead and len({type(_numbered(model, name)) for name in members}) == 1:
            last = pattern.replace("#", "$", 1)
            if set(dead) == set(matching(members, [last])):
                reasons[last] = names[dead[0]]
    return reasons


def _numbered(model: nn.Module, name: str) -> nn.Module:
    """Outermost module of `name` that is a member of a list."""
    first = re.match(r"(?:.*?\.)??\d+(?=\.|$)", name)
    return model.get_submodule(first[0] if first else name)
