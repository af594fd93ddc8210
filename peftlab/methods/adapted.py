"""Layers and parameters that PEFT adapted: the ones that the recipe chose, and no others."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from peftlab.errors import UserError

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn


@contextlib.contextmanager
def targets_as_given() -> Iterator[None]:
    """Context in which PEFT adapts the targets of a LoRA config and no others.

    For models with experts, PEFT 0.21 takes every target that ends in gate_proj, up_proj or down_proj, full names of
    shared experts and dense layers included, for the experts as they were named in transformers 4, and adapts the
    stacked experts instead, gate_up_proj with twice the rank. It does so again when it loads the adapter.
    """
    from peft.utils import transformers_weight_conversion as library

    convert = library._convert_peft_config_moe
    library._convert_peft_config_moe = lambda peft_config, model: None
    try:
        yield
    finally:
        library._convert_peft_config_moe = convert


def adapted(model: nn.Module) -> set[str]:
    """Full names, in the base model, of the modules and parameters that PEFT's method adapts."""
    from peft.tuners.tuners_utils import BaseTuner

    tuner: Any = getattr(model, "base_model", None)
    if not isinstance(tuner, BaseTuner):  # virtual tokens
        return set()
    names = set()
    for name, module in tuner.model.named_modules():
        if isinstance(module, tuner.tuner_layer_cls):
            place = ".".join(part for part in name.split(".") if part != "base_layer")
            parameter = getattr(module, "parameter_name", None)
            names.add(place if parameter is None else f"{place}.{parameter}")
    return names


def chosen_places(config: PeftConfig, model: nn.Module) -> set[str] | None:
    """Full names of what the config targets; None if it targets by patterns, or nothing."""
    modules, parameters = getattr(config, "target_modules", None), getattr(config, "target_parameters", None)
    if not isinstance(modules, Collection) or isinstance(modules, str):
        return None
    names = {name for name, _ in model.named_modules()}
    return {*modules, *(parameters or ())} if names.issuperset(modules) else None


def require_chosen(model: nn.Module, chosen: Collection[str]) -> None:
    """Raise UserError if PEFT adapted anything but what was chosen."""
    found = adapted(model)
    missing, unexpected = sorted({*chosen} - found), sorted(found - {*chosen})
    if missing or unexpected:
        parts = [
            f"{text} {len(names)}, e.g. {names[0]}"
            for text, names in (("left out", missing), ("added", unexpected))
            if names
        ]
        raise UserError(f"method.targets: of {len(chosen)} chosen layers PEFT {' and '.join(parts)}; name others")
