"""A linear layer with a frozen, packed weight. Each pass unpacks it; the graph keeps no copy in float."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from peftlab.quantization.autocast import to_autocast_dtype

Tensors = Mapping[str, Tensor]
Shape = tuple[int, int]


class Packing(ABC):
    """A format of packed weights. `dtype` is the one in which a weight is unpacked unless asked otherwise."""

    bits: int
    """Bits per weight, without scales."""
    constants: tuple[str, ...] = ()
    """Names of the tensors that are quantization constants, e.g. scales."""

    @abstractmethod
    def layout(self, shape: Shape, dtype: torch.dtype) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Names of the packed tensors of a weight of this shape (out, in) -> their shape and dtype."""

    @abstractmethod
    def pack(self, weight: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """The packed tensors of a float weight (out, in)."""

    @abstractmethod
    def unpack(self, tensors: Tensors, shape: Shape, dtype: torch.dtype) -> Tensor:
        """The weight (out, in) as float."""

    def incompatible_with(self, shape: Shape) -> str | None:
        """Reason why a weight of this shape cannot be packed, None if it can."""
        return None

    def linear(self, input: Tensor, tensors: Tensors, shape: Shape) -> Tensor:
        """input (..., in) times the transposed weight."""
        return nn.functional.linear(input, self.unpack(tensors, shape, input.dtype))

    def input_gradient(self, gradient: Tensor, tensors: Tensors, shape: Shape) -> Tensor:
        """gradient (..., out) times the weight."""
        return gradient @ self.unpack(tensors, shape, gradient.dtype)


class PackedLinear(nn.Linear):
    """A linear layer that holds `weight` until `pack` replaces it by packed tensors.

    From then on, `weight` is unpacked at each access: code that reads it works; what is written to it is lost.
    """

    packing: Packing
    dtype: torch.dtype
    transposed: bool
    """True if the checkpoint stores the weight as (in, out), as GPT-2's Conv1D does."""

    @classmethod
    def replace(cls, module: Any, packing: Packing, dtype: torch.dtype) -> PackedLinear:
        """An empty packed layer on the meta device in place of a linear layer or a Conv1D."""
        transposed = not isinstance(module, nn.Linear)
        shape = module.weight.shape[::-1] if transposed else module.weight.shape
        layer = cls(shape[1], shape[0], bias=module.bias is not None, device="meta", dtype=module.weight.dtype)
        layer.packing, layer.dtype, layer.transposed = packing, dtype, transposed
        if transposed:  # the shape of the file, until it is packed
            layer.weight = nn.Parameter(layer.weight.detach().T)
        return layer.requires_grad_(False)

    @property
    def packed(self) -> bool:
        return "weight" not in self._parameters

    @property
    def constants(self) -> set[str]:
        """Names of the parameters that are quantization constants."""
        return set(self.packing.constants) if self.packed else set()

    def pack(self, weight: Tensor) -> None:
        """Replace the weight of the layer by `weight`, packed. On the meta device, by empty tensors of those sizes."""
        weight = weight.detach()
        if self.transposed:
            weight = weight.T.contiguous()
        if weight.is_meta:
            sizes = self.packing.layout(self._shape, self.dtype)
            tensors = {name: torch.empty(size, dtype=dtype, device="meta") for name, (size, dtype) in sizes.items()}
        else:
            tensors = self.packing.pack(weight, self.dtype)
        del self.weight
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = _FrozenProduct.apply(to_autocast_dtype(input), self)  # type: ignore[no-untyped-call]
        return output if self.bias is None else output + self.bias.to(output.dtype)

    def __getattr__(self, name: str) -> Any:
        if name == "weight" and "packing" in self.__dict__ and self.packed:
            return nn.Parameter(self.packing.unpack(self._parameters, self._shape, self.dtype), requires_grad=False)  # type: ignore[arg-type]
        return super().__getattr__(name)

    @property
    def _shape(self) -> Shape:
        return self.out_features, self.in_features


class _FrozenProduct(torch.autograd.Function):
    """The product of an input and a frozen packed weight, which both passes unpack."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        return layer.packing.linear(input, layer._parameters, layer._shape)  # type: ignore[arg-type]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        layer = ctx.layer
        return layer.packing.input_gradient(gradient, layer._parameters, layer._shape), None


def packed_linears(model: nn.Module) -> dict[str, PackedLinear]:
    """All packed linear layers of `model` by full name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}
