"""torchao's int8 weight-only format: symmetric, one float32 scale per row.

torchao's own linear operator would keep a float copy of every weight in the graph, for the gradient of its input.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchao.quantization import PerRow
from torchao.quantization.quantize_.workflows.int8.int8_tensor import Int8Tensor

from peftlab.quantization.packing.packed_linear import Packing, Shape, Tensors


class Int8Packing(Packing):
    """int8 codes times the scale of their row."""

    bits = 8
    constants = ("scale",)

    def layout(self, shape: Shape, dtype: torch.dtype) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"codes": (shape, torch.int8), "scale": ((shape[0],), torch.float32)}

    def pack(self, weight: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        packed = Int8Tensor.from_hp(weight, PerRow())
        return {"codes": packed.qdata, "scale": packed.scale.flatten()}

    def unpack(self, tensors: Tensors, shape: Shape, dtype: torch.dtype) -> Tensor:
        return tensors["codes"].to(dtype) * tensors["scale"].to(dtype)[:, None]

    def linear(self, input: Tensor, tensors: Tensors, shape: Shape) -> Tensor:
        return nn.functional.linear(input, tensors["codes"].to(input.dtype)) * tensors["scale"].to(input.dtype)

    def input_gradient(self, gradient: Tensor, tensors: Tensors, shape: Shape) -> Tensor:
        return (gradient * tensors["scale"].to(gradient.dtype)) @ tensors["codes"].to(gradient.dtype)
