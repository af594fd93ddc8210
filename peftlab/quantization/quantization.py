"""Interface that every quantization of the frozen base model implements."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from peftlab.component import Component, Reference

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import BitsAndBytesConfig


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

    @abstractmethod
    def config(self, keep: Sequence[str], compute: torch.dtype) -> BitsAndBytesConfig | None:
        """Argument `quantization_config` of `from_pretrained`, or None.

        `keep` names modules to leave in float; `compute` is the dtype of matrix multiplications.
        """

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

    def prepare(self, model: nn.Module) -> None:
        """Prepare a loaded base model for training through its quantized layers. Called once."""

    def set_fake_weight(self, linear: nn.Module) -> None:
        """Give a quantized linear layer without a loaded weight empty tensors of the sizes that it would hold."""
        raise NotImplementedError(f"{self.kind} has no fake weights: its memory cannot be estimated")


def follow_autocast(model: nn.Module) -> None:
    """Make quantized layers compute in and return autocast's dtype, as float layers do. bitsandbytes ignores autocast.

    Their inputs may be float32 under bfloat16 autocast: PEFT converts some, and a trainable base model is in float32.
    """
    for linear in quantized_linears(model).values():
        linear.register_forward_pre_hook(_input_to_autocast_dtype)


def to_autocast_dtype(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in autocast's dtype, or unchanged if autocast is off."""
    import torch

    device = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else tensor


def _input_to_autocast_dtype(linear: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (to_autocast_dtype(inputs[0]), *inputs[1:])


def quantized_linears(model: nn.Module) -> dict[str, nn.Module]:
    """All bitsandbytes linear layers of `model` by full name."""
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    kinds = (Linear4bit, Linear8bitLt)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
