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

from peftlab.methods.tuners.sublayers import SUBLAYERS, Sublayer, Sublayers

NAME = "BOTTLENECK_ADAPTER"  # PEFT's type, as in adapter_config.json
NORMS = r"(?:.*\.)?(?:(?i:[^.]*norm[^.]*)|ln_[^.]+)"  # what layer norms are called in the architectures of SUBLAYERS
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu}


@dataclass
class AdapterConfig(PeftConfig):
    """PEFT's config of one adapter. `target_modules` is worked out from the architecture and saved for the reader."""

    variant: str = "pfeiffer"
    bottleneck: int = 64  # width
    activation: str = "relu"
    scaling: float = 1.0
    dropout: float = 0.0
    train_layer_norms: bool = False
    modules_to_save: list[str] | None = None
    target_modules: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = PeftType(NAME)

    def sublayers(self, found: Sublayers) -> tuple[Sublayer, ...]:
        """Where this variant puts an adapter."""
        return (found.attention, found.feed_forward) if self.variant == "houlsby" else (found.feed_forward,)


class AdapterLayer(nn.Module, BaseTunerLayer):
    """A module of the base, with adapters behind it where it ends a sublayer and trained weights where it is a norm."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up", "bottleneck_norm")
    other_param_names = ("configs",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_norm = nn.ModuleDict()
        self.configs: dict[str, AdapterConfig] = {}
        self.residual: Tensor | None = None  # of the forward under way
        self.residual_hook: torch.utils.hooks.RemovableHandle | None = None
        self.norm: tuple[nn.Module, str] | None = None  # owner and name: not a submodule, and replaced when it trains

    def watch(self, layer: nn.Module, sublayer: Sublayer) -> None:
        """Learn where the residual comes from and what norm follows the sum in this layer of the base."""
        if self.residual_hook is None and sublayer.residual is not None:
            source = layer.get_submodule(sublayer.residual)
            self.residual_hook = source.register_forward_pre_hook(self._keep_residual)
        if sublayer.norm is not None:
            owner, _, name = sublayer.norm.rpartition(".")
            self.norm = (layer.get_submodule(owner), name)

    def forget(self) -> None:
        """Leave no trace in the base."""
        if self.residual_hook is not None:
            self.residual_hook.remove()
            self.residual_hook = None

    def add_adapter(self, name: str, config: AdapterConfig, width: int, device: torch.device) -> None:
        """`width` is the model's. up starts at zero, so that the model starts as the base to the bit."""
        down, up = nn.Linear(width, config.bottleneck), nn.Linear(config.bottleneck, width)
        if config.variant != "parallel":  # whose down starts as Linear does, as LoRA's
            nn.init.normal_(down.weight, std=0.02)
        for vanishing in (down.bias, up.weight, up.bias):
            nn.init.zeros_(vanishing)
        self.bottleneck_down[name], self.bottleneck_up[name] = down, up
        self.configs[name] = config
        if not down.weight.is_meta:
            down.to(device)
            up.to(device)

    def add_norm(self, name: str) -> None:
        """Trainable copies of the base's norm; PEFT makes them float32."""
        copies = {key: nn.Parameter(p.detach().clone()) for key, p in self.base_layer.named_parameters()}
        self.bottleneck_norm[name] = nn.ParameterDict(copies)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the base gives, (..., width), and the active adapters on it, each seeing what the one before it left."""
        hidden: Tensor
        if self.disable_adapters:
            hidden = self.base_layer(*args, **kwargs)
            return hidden
        norm = self._trained_norm()
        try:
            if norm:
                hidden = torch.func.functional_call(self.base_layer, norm, args, kwargs)
            else:
                hidden = self.base_layer(*args, **kwargs)
            for name in self.active_adapters:
                if name in self.bottleneck_down:
                    hidden = self._adapt(name, hidden)
            return hidden
        finally:  # also where checkpointing breaks off the pass it repeats, or it would be held until the next step
            self.residual = None

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise NotImplementedError("a bottleneck adapter is not linear: it cannot be merged into the base")

    def _trained_norm(self) -> dict[str, Tensor]:
        """The weights, by name and in the base's dtype, that the last active adapter has instead of the base's own."""
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
        if variant == "parallel":
            return self.residual
        x = self.residual + hidden
        if self.norm is not None:
            owner, name = self.norm
            x = getattr(owner, name)(x)
        return x

    def _keep_residual(self, source: nn.Module, args: tuple[Tensor, ...]) -> None:
        active = () if self.disable_adapters else self.active_adapters
        if any(name in self.configs and self.configs[name].variant != "houlsby" for name in active):
            self.residual = args[0]


class AdapterModel(BaseTuner):
    """Puts bottleneck adapters into any architecture of `SUBLAYERS`."""

    prefix = "bottleneck_"
    tuner_layer_cls = AdapterLayer

    def _prepare_adapter_config(  # type: ignore[override]
        self, peft_config: AdapterConfig, model_config: dict[str, Any]
    ) -> AdapterConfig:
        ends = [end_of(sublayer) for sublayer in peft_config.sublayers(sublayers_of(model_config["model_type"]))]
        peft_config.target_modules = "|".join(ends + [NORMS] * peft_config.train_layer_norms)
        return peft_config

    def _prepare_model(self, peft_config: AdapterConfig, model: nn.Module) -> None:  # type: ignore[override]
        model_config: Any = model.config
        names = [name for name, _ in model.named_modules()]
        for sublayer in peft_config.sublayers(sublayers_of(model_config.model_type)):
            if not any(re.fullmatch(end_of(sublayer), name) for name in names):
                there = sorted({re.sub(r"\d+", "N", name) for name in names if name})
                raise ValueError(
                    f"adapter: no module {sublayer.layer}.{sublayer.hidden} in {type(model).__name__}, "
                    f"which has {', '.join(there)}"
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
        for sublayer in peft_config.sublayers(sublayers_of(self.model.config.model_type)):
            if match := re.fullmatch(end_of(sublayer), current_key):
                layer = self.model.get_submodule(match[1])
                wrapped.watch(layer, sublayer)
                device = next(layer.parameters()).device
                wrapped.add_adapter(adapter_name, peft_config, self.model.config.hidden_size, device)
        if peft_config.train_layer_norms and re.fullmatch(NORMS, current_key):
            wrapped.add_norm(adapter_name)
        setattr(parent, target_name, wrapped)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """PEFT calls this to unload. Its own expects the base layer to have a weight, and a dropout has none."""
        if isinstance(child, AdapterLayer):
            child.forget()
        setattr(parent, child_name, new_module)


def sublayers_of(model_type: str) -> Sublayers:
    """Raises ValueError for an architecture that is not known."""
    if model_type not in SUBLAYERS:
        raise ValueError(f"adapter: unknown architecture {model_type!r}; known are {', '.join(SUBLAYERS)}")
    return SUBLAYERS[model_type]


def end_of(sublayer: Sublayer) -> str:
    """Regular expression for the full names of the modules that end `sublayer`, whose first group is the layer."""
    return rf"((?:.*\.)?{sublayer.layer})\.{re.escape(sublayer.hidden)}"


def register() -> None:
    """Make the tuner known to PEFT, once."""
    if NAME not in PeftType.__members__:  # an Enum has no public way to grow
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
