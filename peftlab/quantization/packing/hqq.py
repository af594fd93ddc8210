"""HQQ's format: groups of weights along a row, each with a scale and a zero point; packed by the hqq library."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hqq.core.quantize import Quantizer
from torch import Tensor

from peftlab.quantization.packing.packed_linear import Packing, Shape, Tensors

PER_WORD = 10  # 3-bit weights in an int32


@dataclass(frozen=True)
class HqqPacking(Packing):
    """HQQ along the rows (axis 1). The library optimizes the zero points on the device that holds the weight."""

    bits: int
    group: int
    """Weights per scale and zero point."""
    constants = ("scale", "zero")

    def incompatible_with(self, shape: Shape) -> str | None:
        rows = 1 if self.bits == 3 else 8 // self.bits  # groups packed into one
        if shape[0] * shape[1] % (self.group * rows):
            return f"{shape[0]} x {shape[1]} weights do not divide into groups of {self.group}"
        return None

    def layout(self, shape: Shape, dtype: torch.dtype) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        groups = shape[0] * shape[1] // self.group
        if self.bits == 3:
            codes = (-(-groups // PER_WORD), self.group), torch.int32
        else:
            codes = (groups * self.bits // 8, self.group), torch.uint8
        return {"codes": codes, "scale": ((groups, 1), dtype), "zero": ((groups, 1), dtype)}

    def pack(self, weight: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        codes, meta = Quantizer.quantize(
            weight,
            nbits=self.bits,
            group_size=self.group,
            round_zero=self.bits == 4,  # as hqq's own configurations do
            axis=1,
            device=str(weight.device),
        )
        # Clones, because hqq returns tensors of its inference mode, which no graph may use.
        return {
            "codes": codes.clone(),
            "scale": meta["scale"].to(dtype).clone(),
            "zero": meta["zero"].to(dtype).clone(),
        }

    def unpack(self, tensors: Tensors, shape: Shape, dtype: torch.dtype) -> Tensor:
        packing = Quantizer.bit_to_packing[self.bits]
        meta = {
            **{"compute_dtype": tensors["scale"].dtype, "packing": packing, "view_as_float": False},
            **{"nbits": self.bits, "axis": 1, "group_size": self.group, "shape": shape},
            **{"scale": tensors["scale"], "zero": tensors["zero"]},
        }
        weight: Tensor = Quantizer.dequantize(tensors["codes"], meta)
        return weight.to(dtype)
