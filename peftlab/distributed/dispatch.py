"""One model over several GPUs of one process: each GPU holds some of the layers and passes activations to the next.

For a base model that is too large for one GPU, without several processes. The GPUs compute one after the other.
Accelerate's hooks transfer the activations (`accelerate.dispatch_model`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from peftlab.distributed import DeviceMap
from peftlab.errors import UserError


def load_kwargs(device_map: DeviceMap) -> dict[str, Any]:
    """Arguments for `from_pretrained`: only GPUs, up to their free memory; no offloading to the CPU or a disk."""
    from accelerate.utils import get_max_memory

    return {
        "device_map": device_map,
        "max_memory": {name: size for name, size in get_max_memory().items() if name != "cpu"},
    }


@contextlib.contextmanager
def explain_out_of_memory(device_map: DeviceMap | None, source: str) -> Iterator[None]:
    """Context for loading a base model. Raises UserError if the GPUs cannot hold it."""
    try:
        yield
    except ValueError as error:  # raised by bitsandbytes and accelerate if layers would be offloaded
        if device_map is None or not any(word in str(error) for word in ("offload", "on the CPU or the disk")):
            raise
        raise _out_of_memory(device_map, source) from None


def require_gpus_only(model: torch.nn.Module, device_map: DeviceMap, source: str) -> None:
    """Raise UserError if part of the loaded model is not on a GPU."""
    placement = getattr(model, "hf_device_map", {})
    if {"cpu", "disk"} & {str(device) for device in placement.values()}:
        raise _out_of_memory(device_map, source)


def devices(model: torch.nn.Module) -> tuple[torch.device, ...]:
    """Devices of the model's parameters, sorted by name."""
    return tuple(sorted({parameter.device for parameter in model.parameters()}, key=str))


def _out_of_memory(device_map: DeviceMap, source: str) -> UserError:
    return UserError(
        f"--device-map {device_map}: {source} does not fit on the GPUs of this machine; quantization: nf4 makes it "
        "smaller, recipes/accelerate/fsdp2.yaml shards it over more GPUs"
    )
