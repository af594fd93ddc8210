"""Processes and devices of a run: what the launcher asks for, checked against what the training loop supports."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
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

# Environment variables that `accelerate launch` sets for placements that this loop does not support.
UNSUPPORTED = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor or context parallelism",
}
PEER_FAILURES = (
    "gloo",
    "NCCL",
    "ProcessGroup",
    "Connection closed by peer",
    "Connection reset by peer",
    "Timed out waiting",
)


@dataclass(frozen=True)
class Placement:
    """Processes and devices of a run."""

    accelerator: Accelerator
    fsdp: FsdpSettings | None
    zero: ZeroSettings | None
    device_map: DeviceMap | None  # None with a single device too

    @property
    def shards_parameters(self) -> bool:
        """True if each process holds a shard of every parameter (FSDP2, ZeRO-3)."""
        return self.fsdp is not None or (self.zero is not None and self.zero.stage == 3)


def init_accelerator(
    recipe: Recipe,
    *,
    minutes: float,
    fsdp: FsdpSettings | None = None,
    zero: ZeroSettings | None = None,
    device_map: DeviceMap | None = None,
    tracking: Mapping[str, Any] | None = None,
) -> Accelerator:
    """Create the run's Accelerator. Raises UserError for a placement that the recipe or the machine cannot have.

    Without a launcher the run is one process, on the GPU if there is one. `minutes` is how long processes wait for each
    other. `tracking`: see `tracking.settings`.
    """
    for name, placement in UNSUPPORTED.items():
        if os.environ.get(name, "").lower() in ("1", "true"):
            raise UserError(
                f"{placement} is not supported: launch with recipes/accelerate/ddp.yaml, or if the model is too "
                "large for one device, with recipes/accelerate/fsdp2.yaml, which shards it as ZeRO-3 does"
            )
    _check_supported(recipe, fsdp, zero, device_map)
    recipe.training.optimizer.check_installed()
    launched = _launcher_options(Path(f"/proc/{os.getppid()}/cmdline"))
    processes = int(os.environ.get("WORLD_SIZE") or launched.get("num_processes") or 1)
    if processes == 1 and (fsdp is not None or zero is not None):
        name = "FSDP" if zero is None else "DeepSpeed"
        raise UserError(f"{name}: one process cannot shard a model; leave {name} out, or launch several processes")
    if device_map is not None and processes > 1:
        raise UserError(
            f"--device-map {device_map}: places the model on the GPUs of one process, but there are {processes} "
            "processes; leave it out (a launcher gives each process its GPU), or run without the launcher"
        )
    if processes > 1 and recipe.training.auto_micro_batch:
        raise UserError(
            "training.auto_micro_batch: when one of several processes is out of memory the others wait in vain; "
            "set training.accumulation instead"
        )
    import torch
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

    # In a process group accelerate would otherwise take each process for a single one on the CPU.
    cpu = bool(launched.get("use_cpu")) or not torch.cuda.is_available()
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE") or processes)
    if not cpu and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true"):
        _check_gpus(local_processes, torch.cuda.device_count())
    if processes > 1 and fsdp is None and zero is None:
        # A process that waits in vain for another one raises, and is not aborted by NCCL's watchdog. Not for shards:
        # they are gathered ahead of their use, which blocking waits would prevent.
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    timeout = InitProcessGroupKwargs(timeout=datetime.timedelta(minutes=minutes))
    # If the base itself is trained, it may have parts that no forward uses; no process may wait for their gradients.
    ddp = DistributedDataParallelKwargs(find_unused_parameters=recipe.method.may_train_unused)
    # The precision is the recipe's, not the launcher's.
    accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[timeout, ddp], **(tracking or {}))
    if accelerator.num_processes != processes:
        raise UserError(
            f"the launcher asked for {processes} processes, but only {accelerator.num_processes} started; "
            "to start two on one CPU: accelerate launch --config_file recipes/accelerate/cpu-2.yaml"
        )
    return accelerator


def _check_supported(
    recipe: Recipe, fsdp: FsdpSettings | None, zero: ZeroSettings | None, device_map: DeviceMap | None
) -> None:
    """Raise UserError if the recipe cannot be trained in this placement."""
    if fsdp is None and zero is None and device_map is None:
        return
    architecture = recipe.model.known_architecture()
    ddp = "recipes/accelerate/ddp.yaml trains a copy of the model on each device"
    if fsdp is not None:
        reason = recipe.incompatible_with(architecture, sharded=True)
        if reason is not None:
            raise UserError(f"FSDP: {reason}; {ddp}")
    if zero is not None:
        reason = recipe.incompatible_with(architecture, sharded=zero.stage == 3, zero_stage=zero.stage)
        if reason is not None:
            raise UserError(f"DeepSpeed: {reason}; {ddp}")
    if device_map is not None:
        reason = recipe.incompatible_with(architecture, dispatched=True)
        if reason is not None:
            raise UserError(f"--device-map {device_map}: {reason}; leave it out")


def reset_accelerator_state() -> None:
    """Forget the process's device and rank, which accelerate otherwise keeps for the life of the process."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _check_gpus(processes: int, gpus: int) -> None:
    """Raise UserError if there are fewer GPUs than processes.

    >>> _check_gpus(2, 2)
    """
    if gpus < processes:
        raise UserError(
            f"the launcher asked for {processes} processes with one GPU each, but this machine has {gpus}: "
            f"accelerate launch --num_processes {gpus}"
        )


def remark(accelerator: Accelerator) -> str | None:
    """A hint about GPUs that the run does not use."""
    import torch

    unused = torch.cuda.device_count() - accelerator.num_processes
    if accelerator.device.type == "cuda" and unused > 0:
        return (
            f"{unused} more GPUs are idle; accelerate launch --config_file recipes/accelerate/ddp.yaml "
            f"--num_processes {torch.cuda.device_count()} -m peftlab run ... uses them; --device-map auto places a "
            "model that is too large for one of them on all"
        )
    return None


def is_peer_failure(error: Exception) -> bool:
    """True if the error is due to another process that ended or does not answer."""
    return isinstance(error, RuntimeError) and any(message in str(error) for message in PEER_FAILURES)


def _launcher_options(command_line: Path) -> Mapping[str, Any]:
    """Options of `accelerate launch`, the parent of this process, that it does not pass on in the environment.

    On a CPU it starts a single process whatever `num_processes` says; to several it does not pass on `use_cpu`.
    """
    if sys.platform != "linux":
        return {}
    try:
        words = command_line.read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return {}
    if not any(Path(word).name == "accelerate" or word.startswith("accelerate.commands") for word in words[:3]):
        return {}
    options, config = _options(words), None
    with contextlib.suppress(KeyError, OSError, ValueError, yaml.YAMLError):
        config = yaml.safe_load(Path(options["config_file"]).read_text(encoding="utf-8"))
    launched = dict(config) if isinstance(config, dict) else {}
    if options.get("num_processes", "").isdigit():
        launched["num_processes"] = int(options["num_processes"])
    if "cpu" in options:
        launched["use_cpu"] = True
    return launched


def _options(words: list[str]) -> Mapping[str, str]:
    """Options of the launcher itself, by name.

    >>> dict(_options(["accelerate", "launch", "--cpu", "--num_processes", "2", "-m", "peftlab"]))
    {'cpu': '', 'num_processes': '2'}
    """
    options = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, _ = word.lstrip("-").replace("-", "_").partition("=")
        if word in ("-m", "--module"):
            break
        if word.startswith("--") and name in ("num_processes", "config_file"):
            options[name] = word.partition("=")[2] if equals else following
        elif word == "--cpu":
            options["cpu"] = ""
    return options
