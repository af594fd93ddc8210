"""Trials of a tiny model: key-values from outside, the last token, positions."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from peftlab.models.cache_shape import decoder_prefix, decoder_shape, has_decoder

LIBRARY_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
POSITION_KEYS = ("max_position_embeddings", "n_positions")
PREFIX = 3  # virtual tokens


def prefix_refusal(model: nn.Module, batch: dict[str, torch.Tensor], task_type: str) -> str | None:
    """Reason why PEFT's prefix tuning does not work with this model; None if every layer that it fills reads it."""
    from peft import PrefixTuningConfig, get_peft_model

    config: Any = model.config
    if config.is_encoder_decoder and not has_decoder(model):
        return "it acts on the decoder, and this task's model has none"
    try:
        wrapped: Any = get_peft_model(
            _copy(model),
            PrefixTuningConfig(
                task_type=task_type,
                num_virtual_tokens=PREFIX,
                modules_to_save=_head(model) or None,
                **decoder_shape(model),
            ),
        )
        if config.is_encoder_decoder:
            wrapped.get_prompt = decoder_prefix(wrapped)
        loss_of(wrapped(**batch)).backward()
    except (*LIBRARY_ERRORS, NotImplementedError) as error:
        return _one_line(error)
    gradient = wrapped.prompt_encoder["default"].embedding.weight.grad
    if gradient is None or not gradient.any():
        return "its layers do not read them"
    with torch.no_grad():
        first, second = (loss_of(wrapped(**batch)) for _ in range(2))
    if not torch.allclose(first, second, rtol=1e-4):
        return "its modules then keep states of the batch before"
    return None


def _copy(model: nn.Module) -> nn.Module:
    """A copy without the graph of the states that modules keep of their last forward, which torch does not copy."""
    kept = [value for module in model.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    return copy.deepcopy(model, {id(value): value.detach() for value in kept if value.grad_fn is not None})


def _head(model: nn.Module) -> list[str]:
    """Modules next to the trunk, which are the new head of a classifier."""
    if not hasattr(model, model.base_model_prefix) or model.get_output_embeddings() is not None:  # type: ignore[arg-type,operator]
        return []
    return [
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and any(True for _ in child.parameters())
    ]


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if ("past_key_values" in text and "unexpected keyword" in text) or "does not support past key values" in text:
        return "its attention takes none"
    return f"{type(error).__name__}: {text[:120]}"


def finds_last_token(model: nn.Module, batch: dict[str, torch.Tensor], padding: int) -> bool:
    """True if a classifier gives a padded row other logits for its embeddings than for its token ids."""
    ids, mask = batch["input_ids"].clone(), batch["attention_mask"].clone()
    ids[1, -3:], mask[1, -3:] = padding, 0
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    eos = getattr(model.config, "eos_token_id", None)
    if isinstance(eos, int):
        ids[1, -4] = eos
    with torch.no_grad():
        try:
            by_ids = model(input_ids=ids, attention_mask=mask).logits
        except LIBRARY_ERRORS:
            return False
        try:
            by_embeddings = model(inputs_embeds=embeddings(ids), attention_mask=mask).logits
        except (NotImplementedError, ValueError):
            return True
        except LIBRARY_ERRORS:
            return False
    return not torch.allclose(by_ids[1], by_embeddings[1], atol=1e-4)


def starts_after_padding(build: Any, config: Any, padding: int) -> bool:
    """True if a row as long as the config says fails, and one shorter by the padding id + 1 works."""
    small = copy.deepcopy(config)
    key = next((key for key in POSITION_KEYS if isinstance(getattr(small, key, None), int)), None)
    if key is None:
        return False
    try:
        setattr(small, key, 64)
        model = build(small)
    except LIBRARY_ERRORS:
        return False
    return not _runs(model, 64) and _runs(model, 64 - padding - 1)


def _runs(model: nn.Module, length: int) -> bool:
    ids = torch.randint(10, 250, (1, length))
    extra = {"decoder_input_ids": ids[:, :4]} if has_decoder(model) and model.config.is_encoder_decoder else {}  # type: ignore[union-attr]
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), **extra)
    except LIBRARY_ERRORS:
        return False
    return True


def ignores_positions(config: Any, model_class: Any, batch: dict[str, torch.Tensor]) -> bool:
    """True if neither building nor running the model reads the config's number of positions."""
    read: list[str] = []

    watched = copy.deepcopy(config)
    for part in (watched, *(value for value in vars(watched).values() if isinstance(value, PretrainedConfig))):
        _watch(part, read)
    try:
        with torch.no_grad():
            model_class(watched).eval()(**batch)
    except LIBRARY_ERRORS:
        return False
    return not read


def _watch(config: Any, read: list[str]) -> None:
    """Add the keys of positions to `read` when they are read from this config."""
    base: Any = type(config)

    def get(self: Any, name: str) -> Any:
        if name in POSITION_KEYS:
            read.append(name)
        return base.__getattribute__(self, name)

    config.__class__ = type(base.__name__, (base,), {"__getattribute__": get})


def loss_of(outputs: Any) -> torch.Tensor:
    """A scalar that depends on every output."""
    parts = [value for key, value in outputs.items() if key.endswith("logits")]
    total = torch.zeros(())
    for part in parts:
        weight = torch.linspace(0.5, 1.5, part.numel()).view(part.shape)
        total = total + (part.float() * weight).sum() + part.float().square().sum()
    return total
