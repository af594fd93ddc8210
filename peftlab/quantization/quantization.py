"""What a quantisation of the frozen base is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from peftlab.component import Component, Reference

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import BitsAndBytesConfig


class Quantization(Component):
    """How the linear layers of the frozen base are stored. Head and embeddings always stay float."""

    title: ClassVar[str]  # as in a table: "NF4"
    references: ClassVar[tuple[Reference, ...]] = ()  # for a bibliography
    quantizes: ClassVar[bool] = True

    def config(self, keep: Sequence[str], compute: torch.dtype) -> BitsAndBytesConfig | None:
        """What `from_pretrained` needs. `keep` names modules to leave in float, `compute` is the matmuls' dtype."""
        raise NotImplementedError

    def remark(self, device: str) -> str | None:
        """What a user should know of this quantisation on `device` ("cpu", "cuda")."""
        if self.quantizes and device == "cpu":
            return "on a CPU this saves memory, not time"
        return None

    def incompatible_with_sharding(self) -> str | None:
        """Why FSDP cannot cut such a base into shares, in one line, or None if it can."""
        return None

    def as_shardable(self) -> Self:
        """The same as FSDP can cut it, if that is a matter of settings."""
        return self

    def prepare(self, model: nn.Module) -> None:
        """Called once on the loaded base: whatever it takes to train through it."""

    def set_fake_weight(self, linear: nn.Module) -> None:
        """Give a linear layer of `config` whose weight was never loaded what it would hold, as empty tensors."""
        raise NotImplementedError


def follow_autocast(model: nn.Module) -> None:
    """Have quantised layers compute and answer in autocast's dtype, as float ones do: bitsandbytes' know nothing of it.

    A base that trains is held in float32, and so is what PEFT hands to some of its layers, though it runs in bfloat16.
    """
    for linear in quantized_linears(model).values():
        linear.register_forward_pre_hook(_take_in_autocasts)


def to_autocast_dtype(tensor: torch.Tensor) -> torch.Tensor:
    """As it is where autocast is off."""
    import torch

    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


def _take_in_autocasts(linear: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (to_autocast_dtype(inputs[0]), *inputs[1:])


def quantized_linears(model: nn.Module) -> dict[str, nn.Module]:
    """Every bitsandbytes linear of `model` by full name."""
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    kinds = (Linear4bit, Linear8bitLt)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
