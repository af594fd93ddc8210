"""Interface that every quantization of the frozen base model implements."""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import model_validator

from peftlab.component import Component, Reference
from peftlab.errors import UserError
from peftlab.quantization.autocast import to_autocast_dtype

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers.utils.quantization_config import QuantizationConfigMixin


class Quantization(Component):
    """Storage format of the linear layers of the frozen base model. Head and embeddings always stay in float.

    A subclass must implement `config` and assign `kind` and `title`. Everything else has a default; `set_fake_weight`
    is needed to estimate memory.
    """

    title: ClassVar[str]
    """Name in tables, e.g. "NF4"."""
    references: ClassVar[tuple[Reference, ...]] = ()
    """Papers, for the bibliography."""
    quantizes: ClassVar[bool] = True
    """False only for the format that leaves the weights as they are."""
    readable: ClassVar[bool] = False
    """True if `weight` of a layer reads as float, so that a method may compute with it."""
    library: ClassVar[str | None] = None
    """Optional library that packs the weights: also the name of peftlab's extra that installs it."""
    added_fields: ClassVar[Mapping[str, Any]] = {"float_experts": False}

    float_experts: bool = False
    """Accept that experts stacked in 3-D parameters, which no quantization packs, stay in float. Refused otherwise."""

    @model_validator(mode="after")
    def _something_stays_in_float(self) -> Self:
        if self.float_experts and not self.quantizes:
            raise ValueError("float_experts: without quantization everything is in float; remove the key")
        return self

    @abstractmethod
    def config(self, keep: Sequence[str], compute: torch.dtype) -> QuantizationConfigMixin | None:
        """Argument `quantization_config` of `from_pretrained`, or None.

        `keep` names modules to leave in float; `compute` is the dtype of matrix multiplications.
        """

    def stored_as(self, config: Mapping[str, Any]) -> Self | None:
        """This quantization with the settings of a checkpoint that is stored in its format, None for other checkpoints.

        `config` is the `quantization_config` of the checkpoint's config.json.
        """
        return None

    def missing_library(self) -> str | None:
        """Reason in one line why this quantization cannot be used here, None if its library is installed."""
        if self.library is None or importlib.util.find_spec(self.library) is not None:
            return None
        return f'{self.kind} needs the library {self.library}: pip install "peftlab[{self.library}]"'

    def require_library(self) -> None:
        """Raise UserError if the library of this quantization is not installed."""
        if (reason := self.missing_library()) is not None:
            raise UserError(f"quantization: {reason}")

    def remark(self, device: str) -> str | None:
        """Note for the user on this quantization on a device type ("cpu", "cuda"), or None."""
        if self.quantizes and device == "cpu":
            return "on a CPU this saves memory, not time"
        return None

    def incompatible_with_sharding(self) -> str | None:
        """Reason in one line why FSDP cannot shard a base model in this format, or None if it can."""
        return None

    def as_shardable(self) -> Self:
        """This quantization with settings that FSDP can shard, if settings decide it; otherwise unchanged."""
        return self

    def packed(self, model: nn.Module) -> frozenset[str] | None:
        """Full names of the modules and weights that are packed in a loaded base model; None without quantization."""
        return frozenset(quantized_linears(model)) if self.quantizes else None

    def prepare(self, model: nn.Module) -> None:
        """Prepare a loaded base model for training through its quantized layers. Called once."""

    def set_fake_weight(self, linear: nn.Module) -> None:
        """Give a quantized linear layer without a loaded weight empty tensors of the sizes that it would hold."""
        raise NotImplementedError(f"{self.kind} has no fake weights: its memory cannot be estimated")


def follow_autocast(model: nn.Module) -> None:
    """Make quantized layers compute in and return autocast's dtype, as float layers do. bitsandbytes ignores autocast.

    Their inputs may be float32 under bfloat16 autocast: PEFT converts some, and a trainable base model is in float32.
    """
    for linear in bitsandbytes_linears(model).values():
        linear.register_forward_pre_hook(_input_to_autocast_dtype)


def _input_to_autocast_dtype(linear: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (to_autocast_dtype(inputs[0]), *inputs[1:])


def bitsandbytes_linears(model: nn.Module) -> dict[str, nn.Module]:
    """All bitsandbytes linear layers of `model` by full name."""
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    kinds = (Linear4bit, Linear8bitLt)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def quantized_linears(model: nn.Module) -> dict[str, nn.Module]:
    """All quantized linear layers of `model` by full name, of bitsandbytes and of peftlab's packings."""
    from peftlab.quantization.packing.packed_linear import packed_linears  # late: it imports torch

    return {**bitsandbytes_linears(model), **packed_linears(model)}
