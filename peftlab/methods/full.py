"""Full fine-tuning: every parameter trains. The reference of every table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from peftlab.methods.direct_method import DirectMethod
from peftlab.methods.method import Setting

if TYPE_CHECKING:
    from torch import nn


class Full(DirectMethod):
    """No base is kept apart: what is saved is the whole model."""

    kind: Literal["full"] = "full"
    title: ClassVar[str] = "full fine-tuning"
    learning_rate: ClassVar[float] = 5e-5
    file: ClassVar[str] = "model.safetensors"
    trains_whole_base: ClassVar[bool] = True
    folder: ClassVar[str] = "model"

    @property
    def trains_base(self) -> bool:
        return True

    def unsupported(self, setting: Setting) -> str | None:
        if setting.quantization != "none":
            frozen = setting.quantization
            return f"full fine-tuning changes the base's weights, which {frozen} freezes; use quantization: none"
        return None

    def save(self, model: nn.Module, folder: Path) -> None:
        model.save_pretrained(folder)  # type: ignore[operator]

    def trains(self, name: str, model: nn.Module) -> bool:
        return True
