"""FSDP2: each process holds a share of every tensor, and gathers a layer while it is computed with.

Zhao et al., 2023, "PyTorch FSDP", arXiv:2304.11277; `torch.distributed.fsdp.fully_shard`. What is kept, saved or looked
at is made whole again by `full_tensor`, in which all processes must take part.
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

SWITCH = "ACCELERATE_USE_FSDP"  # set by `accelerate launch`, as are the FSDP_ ones


@dataclass(frozen=True)
class FsdpSettings:
    """What the launcher asked for."""

    reshard: bool = True  # let go of a layer after its forward, and gather it once more for the backward

    @classmethod
    def from_env(cls, environment: MutableMapping[str, str] = os.environ) -> FsdpSettings | None:
        """What is asked for, which is from now on not Accelerate's to do. Raises UserError for what is not done here.

        Accelerate shards model and optimiser in one piece, and on GPUs alone; the loop here clips, keeps and goes on
        from shares, and does so on a CPU too.
        """
        if not _on(environment, SWITCH):
            return None
        if environment.get("FSDP_VERSION", "1") != "2":
            raise UserError("FSDP: version 1 flattens what is frozen and what trains together; set fsdp_version: 2")
        for name, cure in (
            ("FSDP_OFFLOAD_PARAMS", "quantization: nf4 makes shares smaller"),
            ("FSDP_ACTIVATION_CHECKPOINTING", "training.gradient_checkpointing: true of the recipe does it"),
        ):
            if _on(environment, name):
                raise UserError(f"FSDP: {name.lower()} is not done here: {cure}")
        del environment[SWITCH]
        return cls(reshard=environment.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false")

    def shard(self, model: nn.Module, mesh: DeviceMesh) -> None:
        """Share out `model`, which every process has whole and alike, layer by layer; the shares are on its device."""
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        for layer in layers(model):
            fully_shard(layer, mesh=mesh, reshard_after_forward=self.reshard)
        # What is in no layer, embeddings and head, stays gathered from its forward to its backward.
        fully_shard(model, mesh=mesh, reshard_after_forward=False)
        if hasattr(model, "generate"):
            register_fsdp_forward_method(model, "generate")


def device_mesh(device: torch.device) -> DeviceMesh:
    """All processes of the launch."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device.type, (torch.distributed.get_world_size(),))


def layers(model: nn.Module) -> Iterator[nn.Module]:
    """The repeated layers, which stand in lists of modules; a list inside of a layer is a part of it.

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
    """Whether each process holds a share of `model`, so that a forward is a meeting of them."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule) or any(_of_zero(parameter) for parameter in model.parameters())


def reshard(model: nn.Module) -> None:
    """Have nothing gathered, so that the parameters of `model` are shares, as they are after a backward."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    for engine in _zero_engines(model):
        engine.empty_partition_cache()


def full_tensor(tensor: Tensor, parameter: Any = None) -> Tensor:
    """`tensor` itself, or if it is in shares, or the share of a `parameter`, all of it: a meeting of the processes."""
    from torch.distributed.tensor import DTensor

    held: Any = tensor if parameter is None else parameter
    if _of_zero(held):
        mine: Tensor = held.ds_tensor if parameter is None else tensor
        every = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(every, mine)
        return torch.cat(every)[: held.ds_numel].view(held.ds_shape)
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_shard(parameter: Any) -> Tensor:
    """What this process has of `parameter`, to look at and to write to."""
    held: Tensor = parameter.ds_tensor.data if _of_zero(parameter) else parameter.detach()
    return held


def to_local(tensor: Tensor) -> Tensor:
    """The plain tensor of what this process has of `tensor`, whose storage is what it takes."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, like: Any) -> Tensor:
    """This process's share of `tensor`, if `like`, of the same shape, is in shares; otherwise `tensor` itself."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if _of_zero(like):
        size = like.ds_tensor.numel()
        start = torch.distributed.get_rank() * size
        padded: Tensor = like.ds_tensor.new_zeros(size)
        mine = tensor.flatten()[start : start + size]
        padded[: mine.numel()] = mine
        return padded
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def gather_parameters(model: nn.Module, names: Container[str], *, keep: bool) -> None:
    """Make the parameters of these names whole, on the CPU and one after the other: a meeting of the processes.

    Where they are kept, `model` can be saved after it, and is of no other use.
    """
    if not is_sharded(model):
        return
    for engine in _zero_engines(model):
        engine.destroy()  # its hooks would gather for a method that computes something to save it
    kept: dict[Tensor, nn.Parameter] = {}  # one may be in several modules
    for name, parameter in model.named_parameters():
        if name in names:
            tensor = full_tensor(parameter).cpu()
            if keep:
                kept[parameter] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter in kept:
                setattr(module, name, kept[parameter])


def _of_zero(tensor: Any) -> bool:
    """Whether it is a parameter that DeepSpeed's ZeRO-3 has shared out, which puts what it knows of it beside it."""
    return hasattr(tensor, "ds_tensor")


def _zero_engines(model: nn.Module) -> list[Any]:
    """ZeRO-3's optimiser, which gathers and lets go, if it has shared out `model`."""
    found = {id(p._z3_optimizer): p._z3_optimizer for p in model.parameters() if hasattr(p, "_z3_optimizer")}
    return list(found.values())


def _on(environment: MutableMapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() in ("1", "true")
