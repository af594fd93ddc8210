"""How a run is spread over processes and devices: the launcher's word, and what the loop cannot do is refused."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from peftlab.distributed import DeviceMap
from peftlab.distributed.deepspeed import ZeroSettings
from peftlab.distributed.fsdp import FsdpSettings
from peftlab.errors import UserError
from peftlab.recipe import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator

# What `accelerate launch` sets for placements that this loop cannot train in.
UNKNOWN = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor or context parallelism",
}
LOST = ("gloo", "NCCL", "ProcessGroup", "Connection closed by peer", "Connection reset by peer", "Timed out waiting")


def init_accelerator(
    recipe: Recipe,
    *,
    minutes: float,
    sharding: FsdpSettings | None = None,
    zero: ZeroSettings | None = None,
    device_map: DeviceMap | None = None,
    tracking: Mapping[str, Any] | None = None,
) -> Accelerator:
    """The run's place among its processes, which may keep each other waiting so long. Raises UserError.

    Without a launcher it is one process, on the GPU if there is one. `tracking`: see `tracking.settings`.
    """
    for name, placement in UNKNOWN.items():
        if os.environ.get(name, "").lower() in ("1", "true"):
            raise UserError(
                f"{placement} is not supported: launch with recipes/accelerate/ddp.yaml, or where the model is too "
                "large for one device, with recipes/accelerate/fsdp2.yaml, which shares it out as ZeRO-3 or ZeRO-2 does"
            )
    if sharding is not None:
        reason = recipe.incompatible_with(recipe.model.known_architecture(), sharded=True)
        if reason is not None:
            raise UserError(f"FSDP: {reason}; recipes/accelerate/ddp.yaml trains whole copies")
    if zero is not None:
        reason = recipe.incompatible_with(recipe.model.known_architecture(), sharded=zero.stage == 3, zero=zero.stage)
        if reason is not None:
            raise UserError(f"DeepSpeed: {reason}; recipes/accelerate/ddp.yaml trains whole copies")
    asked = _asked_of_launcher(Path(f"/proc/{os.getppid()}/cmdline"))
    wanted = int(os.environ.get("WORLD_SIZE") or asked.get("num_processes") or 1)
    if wanted == 1 and (sharding is not None or zero is not None):
        placement = "FSDP" if zero is None else "DeepSpeed"
        raise UserError(f"{placement}: one process has nobody to share with; leave it out, or launch several")
    if device_map is not None and wanted > 1:
        raise UserError(
            f"--device-map {device_map}: one process spreads the model over all GPUs, and here are {wanted}; "
            "leave it out (a launcher gives each process its GPU), or do without the launcher"
        )
    if device_map is not None:
        reason = recipe.incompatible_with(recipe.model.known_architecture(), spread=True)
        if reason is not None:
            raise UserError(f"--device-map {device_map}: {reason}; leave it out")
    if wanted > 1 and recipe.training.auto_micro_batch:
        raise UserError(
            "training.auto_micro_batch: one process of several that is out of memory leaves the others waiting; "
            "set training.accumulation instead"
        )
    import torch
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

    # Of several processes accelerate would take each for the only one, where it is not told of the CPU.
    cpu = bool(asked.get("use_cpu")) or not torch.cuda.is_available()
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or wanted)
    if not cpu and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true"):
        _check_gpus(here, torch.cuda.device_count())
    if wanted > 1 and sharding is None and zero is None:
        # A process that waits in vain for another one raises, and is not aborted by NCCL's watchdog. Shares are
        # gathered ahead of their use, which this would end.
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    timeout = InitProcessGroupKwargs(timeout=datetime.timedelta(minutes=minutes))
    # Of a base that is trained whole there may be parts that no forward uses, and whose gradients nobody may wait for.
    waiting = DistributedDataParallelKwargs(find_unused_parameters=recipe.method.may_train_unused)
    # The precision is the recipe's, not the launcher's.
    accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[timeout, waiting], **(tracking or {}))
    if accelerator.num_processes != wanted:
        raise UserError(
            f"the launcher asked for {wanted} processes, but only {accelerator.num_processes} came up; "
            "two on one CPU are had with accelerate launch --config_file recipes/accelerate/cpu-2.yaml"
        )
    return accelerator


def reset_accelerator_state() -> None:
    """What accelerate once answered of this process's place and device is all that it ever answers."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _check_gpus(processes: int, gpus: int) -> None:
    """Each process takes one.

    >>> _check_gpus(2, 2)
    """
    if gpus < processes:
        raise UserError(
            f"the launcher asked for {processes} processes, and there {'is' if gpus == 1 else 'are'} {gpus} "
            f"GPU{'' if gpus == 1 else 's'} here, of which each takes one; accelerate launch --num_processes {gpus}"
        )


def remark(accelerator: Accelerator) -> str | None:
    """What could be had beside the placement that was picked."""
    import torch

    unused = torch.cuda.device_count() - accelerator.num_processes
    if accelerator.device.type == "cuda" and unused > 0:
        return (
            f"{unused} more GPUs are idle; accelerate launch --config_file recipes/accelerate/ddp.yaml "
            f"--num_processes {torch.cuda.device_count()} -m peftlab run ... uses them, --device-map auto spreads a "
            "model over them that is too large for one"
        )
    return None


def is_peer_failure(error: Exception) -> bool:
    """Whether the error is another process's end or silence."""
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in LOST)


def _asked_of_launcher(command_line: Path) -> Mapping[str, Any]:
    """What `accelerate launch`, the parent of this process, was asked for, as far as it does not say so itself.

    On a CPU it starts a single process however many it is asked for; of several, it keeps `use_cpu` to itself.
    """
    if sys.platform != "linux":
        return {}
    try:
        words = command_line.read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return {}
    if not any(Path(word).name == "accelerate" or word.startswith("accelerate.commands") for word in words[:3]):
        return {}
    given, config = _options(words), None
    with contextlib.suppress(KeyError, OSError, ValueError, yaml.YAMLError):
        config = yaml.safe_load(Path(given["config_file"]).read_text(encoding="utf-8"))
    asked = dict(config) if isinstance(config, dict) else {}
    if given.get("num_processes", "").isdigit():
        asked["num_processes"] = int(given["num_processes"])
    if "cpu" in given:
        asked["use_cpu"] = True
    return asked


def _options(words: list[str]) -> Mapping[str, str]:
    """The launcher's own options, by name.

    >>> dict(_options(["accelerate", "launch", "--cpu", "--num_processes", "2", "-m", "peftlab"]))
    {'cpu': '', 'num_processes': '2'}
    """
    found = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, _ = word.lstrip("-").replace("-", "_").partition("=")
        if word in ("-m", "--module"):
            break
        if word.startswith("--") and name in ("num_processes", "config_file"):
            found[name] = word.partition("=")[2] if equals else following
        elif word == "--cpu":
            found["cpu"] = ""
    return found
