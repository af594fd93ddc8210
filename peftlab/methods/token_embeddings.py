"""Trained embeddings of single tokens, by PEFT's trainable token indices: room for them, first values, checks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.errors import UserError
from peftlab.methods.method import TrainedToken

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel

SETTING = "trainable_token_indices"  # of PEFT's config
ROWS = "trainable_tokens_delta"  # PEFT's name of the trained rows; they replace those of the base


def is_row(name: str) -> bool:
    """True if the parameter holds trained embeddings.

    >>> is_row("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta.default")
    True
    """
    return f".{ROWS}" in name


def is_inner(module: nn.Module) -> bool:
    """True for the layer that PEFT's wrapper of an embedding calls."""
    return hasattr(module, ROWS)


def embedding_rows(model: PreTrainedModel, tokens: Sequence[TrainedToken]) -> dict[str, list[int]] | None:
    """Ids of the trained rows by the full name of the input embedding, and of the output layer if it is not tied."""
    if not tokens:
        return None
    names = {id(module): name for name, module in model.named_modules()}
    return {names[id(layer)]: [token.id for token in tokens] for layer in _tables(model)}


def make_room(model: PreTrainedModel, ids: Iterable[int]) -> None:
    """Add rows of zeros to the embeddings, and to the output layer, if an id has none. Raises UserError."""
    import torch

    ids = list(ids)
    if not ids:
        return
    tables = _tables(model)
    size, needed = tables[0].weight.shape[0], max(ids) + 1
    if needed <= size:
        return
    for name, module in model.named_modules():
        own = isinstance(module, torch.nn.Embedding) and all(module.weight is not table.weight for table in tables)
        if own and module.num_embeddings == size:
            raise UserError(
                f"method.train_tokens: {name} has a row for each of the {size} tokens too, which a new one would lack; "
                "use tokens of the vocabulary"
            )
    try:
        model.resize_token_embeddings(needed, mean_resizing=False)
    except (NotImplementedError, AttributeError) as error:
        kind = model.config.model_type
        raise UserError(
            f"method.train_tokens: the embeddings of {kind} cannot be resized ({str(error)[:100]}); "
            "use tokens of the vocabulary"
        ) from None
    with torch.no_grad():
        for table in _tables(model):
            table.weight[size:] = 0
            table.weight.requires_grad_(False)


def make_room_for(model: PreTrainedModel, folder: Path) -> None:
    """`make_room` for the tokens of an adapter saved in `folder`."""
    rows = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get(SETTING) or {}
    make_room(model, (token for ids in rows.values() for token in ids))


def add_rows(model: PreTrainedModel, tokens: Sequence[TrainedToken]) -> None:
    """Give each new token the mean of the rows of its pieces, in the base itself. Raises UserError.

    PEFT copies the rows that it trains from the base; a saved adapter holds them, so they need not be set to load it.
    """
    import torch

    make_room(model, (token.id for token in tokens))
    for table in _tables(model) if tokens else ():
        with torch.no_grad():
            for token in tokens:
                if token.is_new:
                    table.weight[token.id] = table.weight[list(token.pieces)].float().mean(dim=0).to(table.weight.dtype)


def _tables(model: nn.Module) -> list[Any]:
    """The input embedding, and the output layer if it has a weight of its own with a row per token."""
    import torch

    try:
        embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    except NotImplementedError:
        embedding = None
    if not isinstance(embedding, torch.nn.Embedding):
        kind = model.config.model_type  # type: ignore[union-attr]
        raise UserError(f"method.train_tokens: {kind} has no table of embeddings with a row per token; leave it out")
    output: Any = model.get_output_embeddings()  # type: ignore[operator]
    own = output is not None and output.weight is not embedding.weight
    return [embedding, output] if own and output.weight.shape[0] == embedding.num_embeddings else [embedding]


def require_as_base(wrapped: PeftModel) -> None:
    """Raise UserError unless every module with the embeddings uses the trained rows and computes what the base does."""
    model: Any = wrapped.get_base_model()
    layers = {name: each for name, each in model.named_modules(remove_duplicate=False) if is_inner(each)}
    tables = {id(layer.get_base_layer().weight) for layer in layers.values()}
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module._parameters.get("weight")) in tables and name.removesuffix(".base_layer") not in layers:
            raise UserError(
                f"method.train_tokens: {name} shares the embeddings, and PEFT would not train its rows; leave it out"
            )
    for name, layer in layers.items():
        place = name.removesuffix(".token_adapter")
        tied = layer.tied_adapter
        if tied is not None and tied.get_base_layer().weight is not layer.get_base_layer().weight:
            raise UserError(
                f"method.train_tokens: the config of {model.config.model_type} ties {place} to the embeddings, but its "
                "weights are others: PEFT would train the same rows in both; leave it out"
            )
        if not _computes_as(layer, layer.get_base_layer()):
            raise UserError(
                f"method.train_tokens: {place} ({type(layer.get_base_layer()).__name__}) scales its result or adds a "
                "bias, which PEFT leaves out; leave train_tokens out"
            )


def _computes_as(layer: Any, base: Any) -> bool:
    """True if PEFT's layer gives the base layer's result. Results on the meta device cannot be compared."""
    import torch

    if getattr(base, "bias", None) is not None:
        return False
    weight = base.weight
    with torch.no_grad():
        if isinstance(base, torch.nn.Embedding):
            inputs = torch.tensor([0, len(weight) - 1], device=weight.device)
        else:
            inputs = torch.linspace(-1, 1, weight.shape[1], device=weight.device, dtype=weight.dtype)
        results = layer(inputs), base(inputs)
    return any(result.device.type == "meta" for result in results) or torch.equal(*results)
