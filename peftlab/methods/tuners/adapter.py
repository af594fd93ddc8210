"""Bottleneck adapters as a PEFT tuner: hidden + scaling * up(activation(down(input))) before the residual sum."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType, register_peft_method
from torch import Tensor, nn
from torch.nn import functional as F

from peftlab.models.fact_types import Facts, Sublayer, expression
from peftlab.models.facts import facts_of

NAME = "BOTTLENECK_ADAPTER"
"""PEFT type in adapter_config.json."""
NORMS = r"(?:.*\.)?(?:(?i:[^.]*norm[^.]*)|ln_[^.]+)"
"""Regular expression for the full names of layer norms."""
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu}


@dataclass
class AdapterConfig(PeftConfig):
    """PEFT config of one adapter. `target_modules` is derived from the architecture and saved for information only."""

    variant: str = "pfeiffer"
    bottleneck: int = 64
    activation: str = "relu"
    scaling: float = 1.0
    dropout: float = 0.0
    train_layer_norms: bool = False
    modules_to_save: list[str] | None = None
    target_modules: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = PeftType(NAME)

    def sublayers(self, facts: Facts) -> tuple[Sublayer, ...]:
        """Sublayers that get an adapter in this variant."""
        if self.variant == "houlsby":
            return (*facts.attention, *facts.feed_forward)
        return facts.feed_forward


class AdapterLayer(nn.Module, BaseTunerLayer):
    """Wraps a module of the base model: adds adapters if it ends a sublayer, trainable copies of weights if a norm."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up", "bottleneck_norm")
    other_param_names = ("configs",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_norm = nn.ModuleDict()
        self.configs: dict[str, AdapterConfig] = {}
        self.residual: Tensor | None = None  # only during a forward pass
        self.residual_hook: torch.utils.hooks.RemovableHandle | None = None
        # Parent and name of the norm after the sum: it must not be a submodule here, and it is replaced if it trains.
        self.norm: tuple[nn.Module, str] | None = None

    def watch(self, layer: nn.Module, sublayer: Sublayer) -> None:
        """Record the residual of this layer of the base model, and the norm that follows the sum."""
        if self.residual_hook is None and sublayer.residual is not None:
            source = layer.get_submodule(sublayer.residual)
            self.residual_hook = source.register_forward_pre_hook(self._store_residual)
        if sublayer.norm is not None:
            owner, _, name = sublayer.norm.rpartition(".")
            self.norm = (layer.get_submodule(owner), name)

    def remove_hook(self) -> None:
        """Remove the hook from the base model."""
        if self.residual_hook is not None:
            self.residual_hook.remove()
            self.residual_hook = None

    def add_adapter(self, name: str, config: AdapterConfig, width: int, device: torch.device) -> None:
        """Add a bottleneck to a model of this width. `up` starts at zero, so outputs equal the base model's exactly."""
        down, up = nn.Linear(width, config.bottleneck), nn.Linear(config.bottleneck, width)
        if config.variant != "parallel":  # parallel keeps the default initialization of Linear, like LoRA's A
            nn.init.normal_(down.weight, std=0.02)
        for parameter in (down.bias, up.weight, up.bias):
            nn.init.zeros_(parameter)
        self.bottleneck_down[name], self.bottleneck_up[name] = down, up
        self.configs[name] = config
        if not down.weight.is_meta:
            down.to(device)
            up.to(device)

    def add_norm(self, name: str) -> None:
        """Add trainable copies of the base model's norm. PEFT converts them to float32."""
        copies = {key: nn.Parameter(p.detach().clone()) for key, p in self.base_layer.named_parameters()}
        self.bottleneck_norm[name] = nn.ParameterDict(copies)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Output of the base module, (..., width), with the active adapters applied one after the other.

        They are applied to the first part of a tuple, which experts return together with their router's logits.
        """
        if self.disable_adapters:
            return self.base_layer(*args, **kwargs)
        norm = self._trained_norm()
        try:
            if norm:
                output = torch.func.functional_call(self.base_layer, norm, args, kwargs)
            else:
                output = self.base_layer(*args, **kwargs)
            hidden = output[0] if isinstance(output, tuple) else output
            for name in self.active_adapters:
                if name in self.bottleneck_down:
                    hidden = self._adapt(name, hidden)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
        finally:  # also if gradient checkpointing stops the recomputation early
            self.residual = None

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise NotImplementedError("a bottleneck adapter is not linear: it cannot be merged into the base")

    def _trained_norm(self) -> dict[str, Tensor]:
        """Weights of the norm in the last active adapter by name, in the base model's dtype."""
        active = [name for name in self.active_adapters if name in self.bottleneck_norm]
        if not active:
            return {}
        dtypes = {key: p.dtype for key, p in self.base_layer.named_parameters()}
        return {key: p.to(dtypes[key]) for key, p in self.bottleneck_norm[active[-1]].named_parameters()}

    def _adapt(self, name: str, hidden: Tensor) -> Tensor:
        config, down, up = self.configs[name], self.bottleneck_down[name], self.bottleneck_up[name]
        x = self._input(config.variant, hidden)
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(next(down.parameters()).dtype)
        x = F.dropout(ACTIVATIONS[config.activation](down(x)), config.dropout, self.training)
        return torch.add(hidden, up(x).to(hidden.dtype), alpha=config.scaling)

    def _input(self, variant: str, hidden: Tensor) -> Tensor:
        if variant == "houlsby":
            return hidden
        assert self.residual is not None
        residual = self.residual if self.residual.shape == hidden.shape else self.residual.view_as(hidden)
        if variant == "parallel":
            return residual
        x = residual + hidden
        if self.norm is not None:
            owner, name = self.norm
            x = getattr(owner, name)(x)
        return x

    def _store_residual(self, source: nn.Module, args: tuple[Tensor, ...]) -> None:
        active = () if self.disable_adapters else self.active_adapters
        if any(name in self.configs and self.configs[name].variant != "houlsby" for name in active):
            self.residual = args[0]


class AdapterModel(BaseTuner):
    """Adds bottleneck adapters to any architecture whose sublayers are known."""

    prefix = "bottleneck_"
    tuner_layer_cls = AdapterLayer

    def _prepare_adapter_config(  # type: ignore[override]
        self, peft_config: AdapterConfig, model_config: dict[str, Any]
    ) -> AdapterConfig:
        ends = [end_of(sublayer) for sublayer in peft_config.sublayers(facts_of(model_config["model_type"]))]
        peft_config.target_modules = "|".join(ends + [NORMS] * peft_config.train_layer_norms)
        return peft_config

    def _prepare_model(self, peft_config: AdapterConfig, model: nn.Module) -> None:  # type: ignore[override]
        model_config: Any = model.config
        names = [name for name, _ in model.named_modules()]
        for sublayer in peft_config.sublayers(facts_of(model_config.model_type)):
            if not any(re.fullmatch(end_of(sublayer), name) for name in names):
                modules = sorted({re.sub(r"\d+", "N", name) for name in names if name})
                raise ValueError(
                    f"adapter: no module {'|'.join(sublayer.layers)}.{sublayer.hidden} in {type(model).__name__}, "
                    f"which has {', '.join(modules)}"
                )

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: AdapterConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        wrapped = target if isinstance(target, AdapterLayer) else AdapterLayer(target)
        for sublayer in peft_config.sublayers(facts_of(self.model.config.model_type)):
            if match := re.fullmatch(end_of(sublayer), current_key):
                layer = self.model.get_submodule(match[1])
                wrapped.watch(layer, sublayer)
                device = next(layer.parameters()).device
                wrapped.add_adapter(
                    adapter_name, peft_config, _width_at(layer, sublayer) or width_of(self.model), device
                )
        if peft_config.train_layer_norms and re.fullmatch(NORMS, current_key):
            wrapped.add_norm(adapter_name)
        setattr(parent, target_name, wrapped)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Restore the base module on unload. PEFT's version expects a weight, and a dropout has none."""
        if isinstance(child, AdapterLayer):
            child.remove_hook()
        setattr(parent, child_name, new_module)


def end_of(sublayer: Sublayer) -> str:
    """Regular expression for the full names of the modules that end `sublayer`. Group 1 is the name of the layer."""
    layers = "|".join(expression(layer) for layer in sublayer.layers)
    layers = layers if len(sublayer.layers) == 1 else f"(?:{layers})"
    return rf"((?:.*\.)?{layers})\.{re.escape(sublayer.hidden)}"


def _width_at(layer: nn.Module, sublayer: Sublayer) -> int | None:
    """Width of the norm that reads the residual: Perceiver's layers have another one than its config's inputs."""
    reader = layer.get_submodule(sublayer.residual) if sublayer.residual is not None else None
    return reader.normalized_shape[-1] if isinstance(reader, nn.LayerNorm) else None


def width_of(model: nn.Module) -> int:
    """Width of the model's layers. Raises ValueError if its config does not tell."""
    config: Any = model.config
    for part in (config, config.get_text_config(), config.get_text_config(decoder=True)):
        for key in ("hidden_size", "d_model"):
            if isinstance(getattr(part, key, None), int):
                return int(getattr(part, key))
    raise ValueError(f"adapter: the config of {config.model_type} has no hidden_size")


def register() -> None:
    """Register the tuner with PEFT. Does nothing if it is registered already."""
    if NAME not in PeftType.__members__:  # Enum has no public API for new members
        member = str.__new__(PeftType, NAME)
        member._name_, member._value_ = NAME, NAME
        type.__setattr__(PeftType, NAME, member)
        PeftType._member_map_[NAME] = PeftType._value2member_map_[NAME] = member
        PeftType._member_names_.append(NAME)
    if PeftType(NAME) not in PEFT_TYPE_TO_TUNER_MAPPING:
        register_peft_method(
            name=NAME.lower(), config_cls=AdapterConfig, model_cls=AdapterModel, prefix=AdapterModel.prefix
        )


register()
