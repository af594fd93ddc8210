"""HQQ (Badri & Shaji, 2023): low-bit weights whose zero points are optimized for a sparse error, without data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from peftlab.quantization.quantization import Quantization

if TYPE_CHECKING:
    import torch


class HQQ(Quantization):
    """Half-quadratic quantization: 2 to 8 bits per weight, a scale and a zero point per group of weights.

    The hqq library packs the weights. A layer whose weights do not divide into groups stays in float.
    """

    kind: Literal["hqq"] = "hqq"
    title: ClassVar[str] = "HQQ"
    readable: ClassVar[bool] = True
    library: ClassVar[str | None] = "hqq"

    bits: Literal[2, 3, 4, 8] = 4
    """Bits per weight, without the scales."""
    group_size: int = Field(64, ge=8, multiple_of=8)
    """Weights that share a scale and a zero point, each in the precision of training."""

    def config(self, keep: Sequence[str], compute: torch.dtype) -> Any:
        self.require_library()
        from peftlab.quantization.packing.hqq import HqqPacking
        from peftlab.quantization.packing.quantizer import PackingConfig

        return PackingConfig(HqqPacking(self.bits, self.group_size), keep, compute)

    def incompatible_with_sharding(self) -> str | None:
        return "hqq weights cannot be sharded: they are stored as integers; use nf4"
