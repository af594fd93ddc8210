"""One model over several GPUs of one process: each holds some of the layers, and sends what they give on to the next.

For a base that is too large for one GPU, where several processes are not wanted: the GPUs compute one after the other.
Accelerate's hooks do the sending (`accelerate.dispatch_model`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from peftlab.distributed import DeviceMap
from peftlab.errors import UserError


def load_kwargs(device_map: DeviceMap) -> dict[str, Any]:
    """For `from_pretrained`: the GPUs alone, each as far as it is free; nothing is left on the CPU or a disk."""
    from accelerate.utils import get_max_memory

    return {
        "device_map": device_map,
        "max_memory": {name: size for name, size in get_max_memory().items() if name != "cpu"},
    }


@contextlib.contextmanager
def explain_out_of_memory(device_map: DeviceMap | None, source: str) -> Iterator[None]:
    """Around the loading: raises UserError if the GPUs cannot hold the base."""
    try:
        yield
    except ValueError as error:  # bitsandbytes' and accelerate's word for what would be left over
        if device_map is None or not any(word in str(error) for word in ("offload", "on the CPU or the disk")):
            raise
        raise _no_room(device_map, source) from None


def require_gpus_only(model: torch.nn.Module, device_map: DeviceMap, source: str) -> None:
    """Raise UserError if some of the loaded model is on no GPU."""
    places = getattr(model, "hf_device_map", {})
    if {"cpu", "disk"} & {str(place) for place in places.values()}:
        raise _no_room(device_map, source)


def devices(model: torch.nn.Module) -> tuple[torch.device, ...]:
    """Where the parameters are: one device, or those that the layers are spread over."""
    return tuple(sorted({parameter.device for parameter in model.parameters()}, key=str))


def _no_room(device_map: DeviceMap, source: str) -> UserError:
    return UserError(
        f"--device-map {device_map}: the GPUs of this machine have no room for all of {source}; "
        "quantization: nf4 makes it smaller, recipes/accelerate/fsdp2.yaml shares it out over more of them"
    )
