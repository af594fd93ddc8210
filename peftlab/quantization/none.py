"""No quantisation: the base as it was published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from peftlab.quantization.quantization import Quantization

if TYPE_CHECKING:
    import torch


class NoQuantization(Quantization):
    """The base's linear layers in float."""

    kind: Literal["none"] = "none"
    title: ClassVar[str] = "none"
    quantizes: ClassVar[bool] = False

    def config(self, keep: Sequence[str], compute: torch.dtype) -> None:
        return None
