"""torchao's int8 weight-only quantization: int8 weights with one scale per row; inputs stay in float on any device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from peftlab.quantization.quantization import Quantization

if TYPE_CHECKING:
    import torch


class TorchaoInt8(Quantization):
    """int8 weights of torchao: one byte per weight. Unlike `int8`, it quantizes no inputs on a GPU either."""

    kind: Literal["torchao_int8"] = "torchao_int8"
    title: ClassVar[str] = "int8 (torchao)"
    readable: ClassVar[bool] = True
    library: ClassVar[str | None] = "torchao"

    def config(self, keep: Sequence[str], compute: torch.dtype) -> Any:
        self.require_library()
        from peftlab.quantization.packing.quantizer import PackingConfig
        from peftlab.quantization.packing.torchao import Int8Packing

        return PackingConfig(Int8Packing(), keep, compute)

    def incompatible_with_sharding(self) -> str | None:
        return "torchao_int8 weights cannot be sharded: they are stored as integers; use nf4"
