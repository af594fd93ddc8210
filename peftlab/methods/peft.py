"""A gate to every other method of the PEFT library, by the name of its type and with its own config keys."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from peftlab.errors import UserError, nearest
from peftlab.methods.dtypes import keep_float
from peftlab.methods.method import MethodContext, TrainingPlan
from peftlab.methods.peft_method import PeftMethod
from peftlab.methods.targets import linear_layers, named_layers

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import nn
    from transformers import PreTrainedModel

OWN = {  # types that have a method of their own here
    **{"ADALORA": "adalora", "BOTTLENECK_ADAPTER": "adapter", "CARTRIDGE": "prefix_tuning", "IA3": "ia3"},
    **{"LORA": "lora", "P_TUNING": "p_tuning", "PREFIX_TUNING": "prefix_tuning", "PROMPT_TUNING": "prompt_tuning"},
}
REFUSED = {
    "CPT": "it needs a text with marked parts before each example",
    "GLORA": "a part of its parameters never gets a gradient",
    "MULTITASK_PROMPT_TUNING": "it needs the number of a task with each example",
    "OSF": "it takes the base's weights apart, which another machine may do with other signs",
    "POLY": "it needs the number of a task with each example",
    "SHADOW": "it passes an object of its own from layer to layer, which breaks BERT, and part of it gets no gradient",
    "TRAINABLE_TOKENS": "it trains the embeddings of tokens that were added to the tokenizer",
    "XLORA": "it mixes adapters that are trained already",
}
UNTRAINED = {  # settings of those that are let through
    ("ADAMSS", "use_asa"): "the training loop would have to call it at every step to choose subspaces",
}
# Those that only add to a layer's output, or know how to unpack its weight. The others compute with the packed weight
# itself: most raise, and HRA and DEFT over int8 start from another model than the base.
QUANTIZED = {
    *("BEFT", "FOURIERFT", "HIRA", "LILY", "LN_TUNING", "MISS", "OFT", "PVERA", "RANDLORA", "ROAD", "VBLORA"),
    *("VERA", "WAVEFT"),
}
SET_HERE = {
    *("auto_mapping", "base_model_name_or_path", "bias", "exclude_modules", "inference_mode", "modules_to_save"),
    *("peft_type", "peft_version", "revision", "task_type"),
}


class Peft(PeftMethod):
    """`type` is as in adapter_config.json, e.g. VERA. Without target_modules it is all linear layers that are adapted.

    Of LN_TUNING it is the norms, and ADAPTION_PROMPT knows its own places.
    """

    kind: Literal["peft"] = "peft"
    title: ClassVar[str] = "PEFT"
    learning_rate: ClassVar[float] = 1e-3
    test_settings: ClassVar[tuple[dict[str, Any], ...]] = ({"type": "VERA"}, {"type": "LN_TUNING"})

    type: str
    settings: dict[str, Any] = Field(default={})  # of PEFT's config of that type

    @model_validator(mode="after")
    def _known(self) -> Self:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        types = {str(getattr(name, "value", name)): config for name, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
        open_types = sorted(types.keys() - OWN.keys() - REFUSED.keys())
        if self.type.upper().replace("-", "_") in OWN:
            kind = OWN[self.type.upper().replace("-", "_")]
            raise ValueError(f"type: {self.type} has a method of its own; use kind: {kind}")
        if self.type in REFUSED:
            raise ValueError(f"type: {self.type} cannot be trained from a recipe: {REFUSED[self.type]}")
        if self.type not in open_types:
            raise ValueError(
                f"type: unknown {self.type!r}{nearest(self.type.upper(), open_types)}; "
                f"known are {', '.join(open_types)}"
            )
        known = {field.name for field in dataclasses.fields(types[self.type]) if field.init} - SET_HERE
        for key in self.settings:
            if key not in known:
                near = " (peftlab sets it)" if key in SET_HERE else nearest(key, known)
                raise ValueError(f"settings: {self.type} has no {key!r}{near}; known are {', '.join(sorted(known))}")
            if self.settings[key] and (self.type, key) in UNTRAINED:
                raise ValueError(f"settings: {self.type} cannot have {key} in a recipe: {UNTRAINED[self.type, key]}")
        try:
            types[self.type](**self.settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"settings: {self.type}: {_first_line(error)}") from None
        return self

    def incompatible_with(self, setting: MethodContext) -> str | None:
        if setting.quantization != "none" and self.type not in QUANTIZED:
            return (
                f"PEFT's {self.type} computes with the base's weights as they are stored, which fails in "
                f"{setting.quantization}; use quantization: none, or one of {', '.join(sorted(QUANTIZED))}"
            )
        return None

    def config(self, model: PreTrainedModel, plan: TrainingPlan) -> PeftConfig:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        config = PEFT_TYPE_TO_CONFIG_MAPPING[self.type]  # type: ignore[index]  # the key is a string and an enum
        known = {field.name for field in dataclasses.fields(config)}
        settings: dict[str, Any] = {"task_type": plan.task_type, "modules_to_save": list(plan.head) or None}
        targets = self.settings.get("target_modules")
        if self.type == "LN_TUNING":
            settings["target_modules"] = targets or _norms(model)
        elif self.type != "ADAPTION_PROMPT" and isinstance(targets, list):
            settings["target_modules"] = named_layers(model, targets, plan.head)
        elif self.type != "ADAPTION_PROMPT" and targets is None:
            settings["target_modules"] = linear_layers(model, plan.head)
        if "exclude_modules" in known:
            settings["exclude_modules"] = list(plan.head) or None
        return config(**{**self.settings, **{key: value for key, value in settings.items() if key in known}})

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
    return [name for name, module in model.named_modules() if "norm" in type(module).__name__.lower()]


def _keep_norms_float(model: PreTrainedModel) -> None:
    """What LN_TUNING trains is copies of the norms, in their dtype: bfloat16 would round most steps off."""
    for name in _norms(model):
        keep_float(model.get_submodule(name))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
