"""Census of host synchronization: where one optimizer step makes the host wait for the GPU."""

from __future__ import annotations

import collections
import traceback
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import peftlab
from peftlab.training import loop
from tests.gpu_rehearsal import simulated_cuda

ROOT = Path(peftlab.__file__).parent.parent
OPERATORS = {
    torch.ops.aten._local_scalar_dense.default,  # .item(), float(), int(), bool()
    torch.ops.aten._unique2.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.nonzero.default,
}
INDEXING = {
    torch.ops.aten._index_put_impl_.default,
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
}


class Census(TorchDispatchMode):
    """Counts the operators that wait for the GPU, by the line of peftlab that calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if _waits(func, args, result):
            self.waits[_line()] += 1
        return result


def of_step(number: int) -> collections.Counter[str]:
    """Counter that receives the waits of this optimizer step, of the training that follows in this process."""
    census, step = Census(), loop._Loop._step

    def counted(self: Any, batch: Any) -> None:
        if batch.step != number:
            step(self, batch)
            return
        before = simulated_cuda.calls["synchronize"]
        with census:
            step(self, batch)
        census.waits["torch.cuda.synchronize"] += simulated_cuda.calls["synchronize"] - before

    loop._Loop._step = counted  # type: ignore[method-assign]
    return census.waits


def _waits(func: Any, args: Any, result: Any) -> bool:
    if not any(isinstance(leaf, torch.Tensor) and leaf.is_cuda for leaf in tree_leaves(args)):
        return False
    if func in INDEXING:  # a mask is turned into indices, whose number the host must know
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    copies = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
    return func in OPERATORS or (func in copies and result.device.type == "cpu")


def _line() -> str:
    """The innermost line of peftlab, or of what the GPU's autograd thread calls."""
    for frame in reversed(traceback.extract_stack()):
        if frame.filename.startswith(str(ROOT / "peftlab")):
            return f"{Path(frame.filename).relative_to(ROOT)}: {frame.line}"
    return "backward"
