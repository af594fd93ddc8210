"""Conversion to the dtype of autocast, for layers that autocast does not know."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def to_autocast_dtype(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in autocast's dtype, or unchanged if autocast is off."""
    import torch

    device = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else tensor
