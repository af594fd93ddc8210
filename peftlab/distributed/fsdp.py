"""FSDP2: each process holds a shard of every tensor and gathers one layer at a time to compute with it.

Zhao et al., 2023, "PyTorch FSDP", arXiv:2304.11277; `torch.distributed.fsdp.fully_shard`. Whatever is stored, saved or
inspected is gathered by `full_tensor`, a collective call. The functions on tensors also handle ZeRO-3 parameters.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peftlab.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

SWITCH = "ACCELERATE_USE_FSDP"
"""Environment variable set by `accelerate launch`, as are those that start with FSDP_."""


@dataclass(frozen=True)
class FsdpSettings:
    """FSDP settings of the launcher."""

    reshard: bool = True
    """Free a layer's full parameters after its forward pass and gather them again for the backward pass."""

    @classmethod
    def from_env(cls, environment: MutableMapping[str, str] = os.environ) -> FsdpSettings | None:
        """Read the settings and remove the switch from `environment`. Raises UserError for unsupported settings.

        Without the switch Accelerate does not shard. It would shard model and optimizer together, and only on GPUs;
        the training loop clips, checkpoints and resumes from shards, and does so on a CPU too.
        """
        if not _is_true(environment, SWITCH):
            return None
        if environment.get("FSDP_VERSION", "1") != "2":
            raise UserError("FSDP: version 1 flattens frozen and trainable parameters together; set fsdp_version: 2")
        for name, alternative in (
            ("FSDP_OFFLOAD_PARAMS", "use quantization: nf4 instead"),
            ("FSDP_ACTIVATION_CHECKPOINTING", "use training.gradient_checkpointing: true instead"),
        ):
            if _is_true(environment, name):
                raise UserError(f"FSDP: {name.lower()} is not supported: {alternative}")
        del environment[SWITCH]
        return cls(reshard=environment.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false")

    def shard(self, model: nn.Module, mesh: DeviceMesh) -> None:
        """Shard `model` layer by layer. Every process must hold the same full model; shards stay on its device."""
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        for layer in layers(model):
            fully_shard(layer, mesh=mesh, reshard_after_forward=self.reshard)
        # Modules outside of layers (embeddings, head) stay gathered from their forward to their backward pass.
        fully_shard(model, mesh=mesh, reshard_after_forward=False)
        if hasattr(model, "generate"):
            register_fsdp_forward_method(model, "generate")


def device_mesh(device: torch.device) -> DeviceMesh:
    """One-dimensional mesh of all processes of the launch."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device.type, (torch.distributed.get_world_size(),))


def layers(model: nn.Module) -> Iterator[nn.Module]:
    """Repeated layers of the model: the children of its outermost module lists.

    >>> block = nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)]))
    >>> model = nn.ModuleDict({"embeddings": nn.Embedding(3, 2), "layer": nn.ModuleList([block])})
    >>> [layer is block for layer in layers(model)]
    [True]
    """
    for child in model.children():
        if isinstance(model, nn.ModuleList) and not isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from layers(child)


def is_sharded(model: nn.Module) -> bool:
    """True if the model is sharded; its forward is then a collective call."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule) or any(_is_zero3(parameter) for parameter in model.parameters())


def reshard(model: nn.Module) -> None:
    """Free all gathered parameters, so that the parameters of `model` are shards, as after a backward pass."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    for engine in _zero3_optimizers(model):
        engine.empty_partition_cache()


def full_tensor(tensor: Tensor, parameter: Any = None) -> Tensor:
    """Gather a sharded tensor, or the shard `tensor` of `parameter`. A collective call; a plain tensor is returned."""
    from torch.distributed.tensor import DTensor

    target: Any = tensor if parameter is None else parameter
    if _is_zero3(target):
        shard: Tensor = target.ds_tensor if parameter is None else tensor
        shards = [torch.empty_like(shard) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(shards, shard)
        return torch.cat(shards)[: target.ds_numel].view(target.ds_shape)
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_shard(parameter: Any) -> Tensor:
    """This process's shard of `parameter`, sharing its memory; the parameter itself if it is not sharded."""
    shard: Tensor = parameter.ds_tensor.data if _is_zero3(parameter) else parameter.detach()
    return shard


def to_local(tensor: Tensor) -> Tensor:
    """Plain tensor of this process's shard of `tensor`; its storage is the memory that the shard occupies."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, like: Any) -> Tensor:
    """This process's shard of the full `tensor`, sharded as `like`. Unchanged if `like` is not sharded."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if _is_zero3(like):
        size = like.ds_tensor.numel()
        start = torch.distributed.get_rank() * size
        padded: Tensor = like.ds_tensor.new_zeros(size)
        values = tensor.flatten()[start : start + size]
        padded[: values.numel()] = values
        return padded
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def gather_parameters(model: nn.Module, names: Container[str], *, keep: bool) -> None:
    """Gather the named parameters of a sharded model on the CPU, one at a time. A collective call.

    With `keep` they replace the shards in this process, and `model` can then be saved but no longer run.
    """
    if not is_sharded(model):
        return
    for engine in _zero3_optimizers(model):
        engine.destroy()  # otherwise its hooks gather parameters when a method computes what it saves
    gathered: dict[Tensor, nn.Parameter] = {}  # a parameter may be in several modules
    for name, parameter in model.named_parameters():
        if name in names:
            tensor = full_tensor(parameter).cpu()
            if keep:
                gathered[parameter] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter in gathered:
                setattr(module, name, gathered[parameter])


def _is_zero3(tensor: Any) -> bool:
    """True for a parameter that DeepSpeed ZeRO-3 has partitioned, to which it adds its own attributes."""
    return hasattr(tensor, "ds_tensor")


def _zero3_optimizers(model: nn.Module) -> list[Any]:
    """ZeRO-3's optimizers, which gather and free parameters, if DeepSpeed has partitioned `model`."""
    optimizers = {id(p._z3_optimizer): p._z3_optimizer for p in model.parameters() if hasattr(p, "_z3_optimizer")}
    return list(optimizers.values())


def _is_true(environment: MutableMapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() in ("1", "true")
