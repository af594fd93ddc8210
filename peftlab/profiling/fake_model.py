"""Models without values: shapes on the meta device or of fake tensors, and a recorder of their training's memory."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, distributed, nn
from torch._guards import active_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import masking_utils
from transformers.quantizers.auto import AutoHfQuantizer

from peftlab.errors import UserError, nearest
from peftlab.loading.direct_reads import directly_read
from peftlab.loading.head import with_head
from peftlab.loading.model import Base, LoadOptions, head_modules, kept_float, set_dropout
from peftlab.loading.model import count as count_parameters
from peftlab.loading.text_trunk import text_trunk
from peftlab.models.model import KnownConfig, ModelFiles
from peftlab.models.text_branch import counts_outside
from peftlab.profiling.memory import add_up
from peftlab.profiling.snapshots import PhaseSnapshot
from peftlab.quantization import Quantization
from peftlab.quantization.quantization import bitsandbytes_linears
from peftlab.tasks import Task


def meta_model(known: KnownConfig, task: Task, quantization: Quantization, options: LoadOptions) -> Base:
    """The base model as `load_base` gives it, with every tensor on the meta device. Raises UserError like it."""
    config = full_config(known.values, task)
    if options.dropout is not None:
        set_dropout(config, options.dropout)
    dtype = options.compute if options.frozen else torch.float32
    with torch.device("meta"):
        skeleton: Any = with_head(config, task, dtype=dtype)
        head, parameters = head_modules(skeleton, task), count_parameters(skeleton)
        trunk = text_trunk(skeleton, head)
        for name in head:
            skeleton.get_submodule(name).float()
        keep = [*kept_float(skeleton, head), *directly_read(skeleton, task, quantization)]
        settings = quantization.config(keep, dtype)
        if settings is not None:
            quantizer = AutoHfQuantizer.from_config(settings, pre_quantized=False)
            quantizer.preprocess_model(model=skeleton, device_map={"": "cpu"})
            quantizer.postprocess_model(skeleton)
    skeleton.requires_grad_(False)
    quantization.prepare(skeleton)
    skeleton.config.get_text_config().pad_token_id = options.padding_token
    files = ModelFiles(folder=Path(), source=known.source, fingerprint="")
    outside_text = counts_outside(skeleton, head)
    packed = quantization.packed(skeleton)
    return Base(skeleton, head, parameters, files, outside_text, trunk=trunk, packed=packed)


def full_config(values: Mapping[str, Any], task: Task) -> Any:
    """The config of a base model with these values with the task's head. Raises UserError."""
    values = dict(transformers.PretrainedConfig._decode_special_floats(dict(values)))  # as from_pretrained does
    architecture = values.pop("model_type")
    if architecture not in transformers.CONFIG_MAPPING:
        near = nearest(architecture, transformers.CONFIG_MAPPING)
        raise UserError(f"model: transformers has no architecture {architecture!r}{near}")
    try:
        return transformers.CONFIG_MAPPING[architecture].from_dict({**values, **task.model_settings()})
    except (KeyError, StrictDataclassError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"model: transformers' config of {architecture} refuses these values: {reason}") from None


@contextlib.contextmanager
def fake_tensors() -> Iterator[None]:
    """Context in which every new tensor is a fake CPU tensor: code that depends on the device takes its CPU path.

    transformers drops an attention mask of ones unless it sees tracing, which fake tensors look like.
    """
    library: Any = masking_utils
    tracing = library.is_tracing
    library.is_tracing = lambda tensor=None: False
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        library.is_tracing = tracing


@contextlib.contextmanager
def fake_process_group(count: int) -> Iterator[DeviceMesh]:
    """A process group of `count` ranks of which only rank 0, this process, exists; nothing is sent."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    try:
        yield init_device_mesh("cpu", (count,))
    finally:
        distributed.destroy_process_group()


class ShapeRecorder(TorchDispatchMode):
    """Recorder for fake tensors: follows storages from operator to operator, and answers requests for values."""

    reserved = None

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._events: list[tuple[int, str]] = []
        self._sizes: dict[int, int] = {}  # bytes of live storages
        self._resize = torch.UntypedStorage.resize_
        self._depth = 0  # operators decompose into others within

    def __enter__(self) -> ShapeRecorder:
        if self._depth == 0:
            self._shapes = active_fake_mode()
            setattr(torch.UntypedStorage, "resize_", lambda storage, size: self._resized(storage, size))  # noqa: B010
        self._depth += 1
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._depth -= 1
        if self._depth == 0:
            setattr(torch.UntypedStorage, "resize_", self._resize)  # noqa: B010

    def mark(self, phase: str) -> None:
        self._events.append((0, phase))

    def snapshots(self) -> list[PhaseSnapshot]:
        return add_up(self._events)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it dispatches again with the local shard
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            return True if args[0].dtype is torch.bool else 1 if not args[0].is_floating_point() else 1.0
        if func is torch.ops.aten.equal.default:
            return False
        if func is torch.ops.bitsandbytes.gemm_4bit.default:
            with self:
                return _gemm_4bit(*args, **kwargs)
        if func in INDEXING and any(index is not None and index.dtype is torch.bool for index in args[1]):
            with self:
                return func(args[0], _positions(args[1]), *args[2:], **kwargs)
        outputs = func(*args, **kwargs)
        if active_fake_mode() is not self._shapes:
            return outputs  # shape propagation of a DTensor
        seen = {_storage(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, Tensor) and (storage := _storage(tensor)) not in seen:
                seen.add(storage)
                self._follow(tensor)
        return outputs

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._sizes[storage._cdata] = storage.nbytes()
        self._events.append((storage.nbytes(), ""))
        weakref.finalize(storage, self._released, storage._cdata)

    def _released(self, storage: int) -> None:
        self._events.append((-self._sizes.pop(storage), ""))

    def _resized(self, storage: torch.UntypedStorage, size: int) -> None:
        """Record a storage that FSDP2 empties after use and refills to gather again."""
        self._events.append((size - storage.nbytes(), ""))
        if storage._cdata in self._sizes:
            self._sizes[storage._cdata] = size
        self._resize(storage, size)


INDEXING = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
}


def _positions(indices: Iterable[Tensor | None]) -> list[Tensor | None]:
    """The indices with each boolean mask replaced by positions: as many as the mask has elements, the upper limit."""
    positions: list[Tensor | None] = []
    for index in indices:
        if index is None or index.dtype is not torch.bool:
            positions.append(index)
        else:
            positions += [torch.empty(index.numel(), dtype=torch.int64) for _ in index.shape]
    return positions


def _gemm_4bit(
    input: Tensor,
    packed: Tensor,
    shape: tuple[int, int],
    absmax: Tensor,
    block: int,
    kind: str,
    bias: Tensor | None = None,
    absmax_8bit: Tensor | None = None,
    *rest: Any,
) -> Tensor:
    """The allocations inside the operator: scales as floats, the dequantized weight, the product."""
    scales = None if absmax_8bit is None else torch.empty(absmax_8bit.shape) + 0.0
    output = nn.functional.linear(input, torch.empty(shape, dtype=input.dtype), bias)
    del scales
    return output


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def materialize_fake(
    model: nn.Module, quantization: Quantization, base_storages: Iterable[StorageWeakRef]
) -> dict[StorageWeakRef, None]:
    """Replace a model's meta tensors by fake CPU tensors, in place; shared tensors stay shared.

    Call it inside `fake_tensors()`. Returns the storages that replace `base_storages`.
    """
    replaced: dict[int, Tensor] = {}
    moved: dict[StorageWeakRef, StorageWeakRef] = {}

    def replacement(tensor: Tensor) -> Tensor:
        if id(tensor) not in replaced:
            new: Tensor = torch.empty(tensor.shape, dtype=tensor.dtype)
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, requires_grad=tensor.requires_grad)
            replaced[id(tensor)] = new
            note_move(tensor, new)
        return replaced[id(tensor)]

    def note_move(old: Tensor, new: Tensor) -> None:
        moved[StorageWeakRef(old.untyped_storage())] = StorageWeakRef(new.untyped_storage())

    for linear in bitsandbytes_linears(model).values():
        weight: Any = linear.weight
        quantization.set_fake_weight(linear)
        replaced[id(linear.weight)] = linear.weight  # type: ignore[assignment]
        note_move(weight, linear.weight)  # type: ignore[arg-type]
    for module in model.modules():
        tensors: dict[str, Any]
        for tensors in (module._parameters, module._buffers):
            tensors.update(
                {name: replacement(tensor) for name, tensor in tensors.items() if tensor is not None}  # type: ignore[misc]
            )
        for value in vars(module).values():
            if isinstance(value, dict):  # e.g. the initial factors of PiSSA
                value.update({key: replacement(tensor) for key, tensor in value.items() if type(tensor) is Tensor})
    return dict.fromkeys(moved[storage] for storage in base_storages if storage in moved)
