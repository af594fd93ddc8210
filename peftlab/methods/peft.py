"""Access to the other methods of the PEFT library by type name, with the keys of their own configs."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from peftlab.errors import UserError, nearest
from peftlab.methods.dtypes import keep_float
from peftlab.methods.method import MethodContext, TrainingPlan
from peftlab.methods.peft_method import PeftMethod
from peftlab.methods.targets import linear_layers, named_layers
from peftlab.models.text_branch import is_part_of, outside
from peftlab.quantization import QUANTIZATIONS

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import nn
    from transformers import PreTrainedModel

IMPLEMENTED = {  # types with a dedicated method in peftlab
    **{"ADALORA": "adalora", "BOTTLENECK_ADAPTER": "adapter", "CARTRIDGE": "prefix_tuning", "IA3": "ia3"},
    **{"LORA": "lora", "P_TUNING": "p_tuning", "PREFIX_TUNING": "prefix_tuning", "PROMPT_TUNING": "prompt_tuning"},
}
REFUSED = {
    "CPT": "it needs a text with marked spans before each example",
    "GLORA": "some of its parameters never receive a gradient",
    "MULTITASK_PROMPT_TUNING": "it needs a task id with each example",
    "OSF": "it factorizes the base model's weights, and the signs of the factors may differ on another machine",
    "POLY": "it needs a task id with each example",
    "SHADOW": "it passes a custom object between layers, which breaks BERT, and some of its parameters get no gradient",
    "TRAINABLE_TOKENS": "use kind: lora with train_tokens, which also adds the tokens to the tokenizer",
    "XLORA": "it mixes adapters that are already trained",
}
UNSUPPORTED_SETTINGS = {  # of types that are supported otherwise
    ("ADAMSS", "use_asa"): "the training loop would have to call it at every step to choose subspaces",
}
# Types that only add to a layer's output, or that dequantize bitsandbytes' weights. The others compute with the packed
# weight: most raise an error, and HRA and DEFT over int8 do not start as the base model. Over hqq and torchao_int8,
# whose weights read as float, every type trains.
QUANTIZED = {
    *("BEFT", "FOURIERFT", "HIRA", "LILY", "LN_TUNING", "MISS", "OFT", "PVERA", "RANDLORA", "ROAD", "VBLORA"),
    *("VERA", "WAVEFT"),
}
MANAGED = {  # config keys that peftlab sets
    *("auto_mapping", "base_model_name_or_path", "bias", "exclude_modules", "inference_mode", "modules_to_save"),
    *("peft_type", "peft_version", "revision", "task_type"),
}


class Peft(PeftMethod):
    """Any other method of the PEFT library, selected by its type, e.g. VERA.

    PEFT's documentation names the papers. Without `target_modules` all linear layers are adapted, except that LN_TUNING
    adapts the norms and ADAPTION_PROMPT has fixed locations.
    """

    kind: Literal["peft"] = "peft"
    title: ClassVar[str] = "PEFT"
    learning_rate: ClassVar[float] = 1e-3
    test_settings: ClassVar[tuple[dict[str, Any], ...]] = ({"type": "VERA"}, {"type": "LN_TUNING"})

    type: str
    """PEFT's name of the method, as in adapter_config.json, e.g. VERA or LN_TUNING."""
    settings: dict[str, Any] = Field(default={}, examples=[{"r": 8}])
    """Keys and values of PEFT's config class for this type."""

    @model_validator(mode="after")
    def _check_type_and_settings(self) -> Self:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        configs = {str(getattr(name, "value", name)): config for name, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
        self._check_type(configs.keys())
        keys = {field.name for field in dataclasses.fields(configs[self.type]) if field.init} - MANAGED
        for key, value in self.settings.items():
            if key not in keys:
                hint = " (peftlab sets it)" if key in MANAGED else nearest(key, keys)
                raise ValueError(f"settings: {self.type} has no {key!r}{hint}; known are {', '.join(sorted(keys))}")
            if value and (self.type, key) in UNSUPPORTED_SETTINGS:
                reason = UNSUPPORTED_SETTINGS[self.type, key]
                raise ValueError(f"settings: {key} of {self.type} is not supported: {reason}")
        try:
            configs[self.type](**self.settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"settings: {self.type}: {_first_line(error)}") from None
        return self

    def _check_type(self, types: Collection[str]) -> None:
        normalized = self.type.upper().replace("-", "_")
        if normalized in IMPLEMENTED:
            raise ValueError(
                f"type: {self.type} is implemented as a method of peftlab; use kind: {IMPLEMENTED[normalized]}"
            )
        if self.type in REFUSED:
            raise ValueError(f"type: {self.type} cannot be trained from a recipe: {REFUSED[self.type]}")
        supported = sorted(set(types) - IMPLEMENTED.keys() - REFUSED.keys())
        if self.type not in supported:
            hint = nearest(self.type.upper(), supported)
            raise ValueError(f"type: unknown {self.type!r}{hint}; known are {', '.join(supported)}")

    @property
    def acts_on(self) -> str:
        return {"LN_TUNING": "norms", "ADAPTION_PROMPT": "the keys and values of attention"}.get(self.type, "weights")

    @property
    def partial_by_choice(self) -> bool:
        return "target_modules" in self.settings

    def incompatible_with(self, context: MethodContext) -> str | None:
        if self.type not in QUANTIZED and not QUANTIZATIONS[context.quantization].readable:
            readable = " or ".join(sorted(kind for kind, each in QUANTIZATIONS.items() if each.readable))
            return (
                f"PEFT's {self.type} computes with the stored weights of the base model, which fails with "
                f"{context.quantization}; use quantization: {readable}, or one of {', '.join(sorted(QUANTIZED))}"
            )
        return None

    def config(self, model: PreTrainedModel, plan: TrainingPlan) -> PeftConfig:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        config = PEFT_TYPE_TO_CONFIG_MAPPING[self.type]  # type: ignore[index]  # the keys are a str enum
        keys = {field.name for field in dataclasses.fields(config)}
        settings: dict[str, Any] = {"task_type": plan.task_type, "modules_to_save": list(plan.head) or None}
        targets = self.settings.get("target_modules")
        if self.type == "LN_TUNING":
            settings["target_modules"] = targets or _norms(model)
        elif self.type != "ADAPTION_PROMPT" and isinstance(targets, list):
            settings["target_modules"] = named_layers(model, targets, plan.head)
        elif self.type != "ADAPTION_PROMPT" and targets is None:
            settings["target_modules"] = linear_layers(model, plan.head)
        if "exclude_modules" in keys:
            settings["exclude_modules"] = list(plan.head) or None
        return config(**{**self.settings, **{key: value for key, value in settings.items() if key in keys}})

    def apply(self, model: PreTrainedModel, plan: TrainingPlan) -> PeftModel:
        if self.type == "LN_TUNING":
            _keep_norms_float(model)
        try:
            return super().apply(model, plan)
        except ValueError as error:  # e.g. a block size that does not divide the width
            raise UserError(f"method.settings: {self.type}: {_first_line(error)}") from None

    def load(self, base: PreTrainedModel, folder: Path, *, trainable: bool = False) -> PeftModel:
        if self.type == "LN_TUNING":
            _keep_norms_float(base)
        return super().load(base, folder, trainable=trainable)

    def stats(self, model: nn.Module) -> dict[str, Any]:
        return {"type": self.type}


def _norms(model: PreTrainedModel) -> list[str]:
    left_out = outside(model)
    norms = (name for name, module in model.named_modules() if "norm" in type(module).__name__.lower())
    return [name for name in norms if not is_part_of(name, left_out)]


def _keep_norms_float(model: PreTrainedModel) -> None:
    """Hold the norms in float32: LN_TUNING trains copies in the same dtype, and bfloat16 would lose most updates."""
    for name in _norms(model):
        keep_float(model.get_submodule(name))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
