"""No quantization: the base model as published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from peftlab.quantization.quantization import Quantization

if TYPE_CHECKING:
    import torch


class NoQuantization(Quantization):
    """Keeps the base model's weights in floating point."""

    kind: Literal["none"] = "none"
    title: ClassVar[str] = "none"
    quantizes: ClassVar[bool] = False
    readable: ClassVar[bool] = True

    def config(self, keep: Sequence[str], compute: torch.dtype) -> None:
        return None
