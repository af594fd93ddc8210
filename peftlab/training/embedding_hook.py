"""Changes the embeddings of a model's input during a forward pass, whatever the architecture."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from peftlab.errors import UserError
from peftlab.methods import token_embeddings

Transform = Callable[[Tensor], Tensor]
"""Function of embeddings (batch, length, width)."""


@contextlib.contextmanager
def transformed_embeddings(model: nn.Module, ids: Tensor, transform: Transform) -> Iterator[None]:
    """Context in which `transform` is applied to the embeddings of `ids`, once.

    Only the model's own input is changed: virtual tokens and a decoder's input are not. Raises UserError if no forward
    in the context looked `ids` up in the input embeddings.
    """
    applied = False

    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        nonlocal applied
        if applied or not (args[0] is ids or _equal(args[0], ids)):
            return output
        applied = True
        return transform(output)

    handles = [module.register_forward_hook(hook) for module in _input_embeddings(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if not applied:
        raise UserError(
            "training: this base does not look its input up in its embeddings, which adversarial and "
            "embedding_noise change; leave them out"
        )


def token_mask(batch: Mapping[str, Tensor]) -> Tensor:
    """(batch, length): 1 at a token, 0 at padding."""
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"]) if mask is None or mask.ndim != 2 else mask


def _equal(one: Tensor, other: Tensor) -> bool:
    """True if two tensors of ids are equal; tensors without values are if they have the same shape."""
    return one.shape == other.shape and (isinstance(other, FakeTensor) or torch.equal(one, other))


def _input_embeddings(model: nn.Module) -> list[nn.Module]:
    """Modules that hold the input embeddings: T5 has three of them."""
    embeddings: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
    weight = _weight(embeddings)
    # Trained tokens: PEFT's wrapper of an embedding calls a layer that has the same weight.
    modules = [module for module in model.modules() if not token_embeddings.is_inner(module)]
    return [module for module in modules if module is embeddings or _weight(module) is weight]


def _weight(module: nn.Module) -> object:
    """The module's weight; of PEFT's wrapper, that of the module in it, because its own is made at each access."""
    return getattr(module.original_module if hasattr(module, "original_module") else module, "weight", None)
