"""Recording of one forward pass: which modules ran, and which node of the autograd graph each of them made."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

Node = Any
"""Node of the autograd graph. torch gives it the same Python object as long as that object is held."""

LENGTH = 9  # tokens of a row; some models pad it further

# Nodes that change neither the direction nor the meaning of their one input: scaled, reshaped, cast, dropped out.
_TRANSPARENT = {
    *("AliasBackward0", "CloneBackward0", "DivBackward0", "ExpandBackward0", "MulBackward0", "NativeDropoutBackward0"),
    *("PermuteBackward0", "ReshapeAliasBackward0", "SliceBackward0", "SqueezeBackward0", "SqueezeBackward1"),
    *("ToCopyBackward0", "TransposeBackward0", "UnsafeViewBackward0", "UnsqueezeBackward0", "ViewBackward0"),
    *("AsStridedBackward0", "ContiguousBackward0"),
}


@dataclass
class Call:
    """One call of a module."""

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    """Floating-point tensors among the arguments, positional ones first."""
    positional: bool
    """True if the first argument is the first of `inputs`, by position."""
    source: Node = None
    """Node of the first of `inputs`, at the time of the call: a later operation in place replaces a tensor's node."""
    output: Tensor | None = None
    """The output, or the first part of a tuple."""
    node: Node = None
    """Node of `output`, at the time of the call."""
    bare: bool = True
    """True if the output is a tensor, not a tuple."""


@dataclass
class Recording:
    """Calls of one forward pass, in the order of completion."""

    calls: list[Call] = field(default_factory=list)
    by_output: dict[Node, list[Call]] = field(default_factory=dict)
    by_input: dict[Node, list[Call]] = field(default_factory=dict)
    """Calls in the order of their start, by the node of their first input."""

    @property
    def names(self) -> set[str]:
        """Full names of the modules that ran."""
        return {call.name for call in self.calls}

    def count(self, name: str) -> int:
        """Number of calls of a module."""
        return sum(call.name == name for call in self.calls)

    def last(self, name: str) -> Call | None:
        """Last call of a module."""
        return next((call for call in reversed(self.calls) if call.name == name), None)


def record(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Recording, Any]:
    """Run the model on `batch`. Returns the recording and the outputs."""
    recording, stack = Recording(), list[Call]()
    handles = []

    def before(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tensors = tuple(t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.is_floating_point())
            call = Call(name, module, tensors, bool(args) and bool(tensors) and args[0] is tensors[0])
            stack.append(call)
            if tensors and tensors[0].grad_fn is not None:
                call.source = tensors[0].grad_fn
                recording.by_input.setdefault(call.source, []).append(call)

        return hook

    def after(module: nn.Module, args: Any, outputs: Any) -> None:
        while (call := stack.pop()).module is not module:  # a module whose forward raised, and was caught
            pass
        first = outputs
        if isinstance(outputs, (tuple, list)) and outputs:
            first = outputs[0]
        if isinstance(first, Tensor):
            call.output, call.bare, call.node = first, first is outputs, first.grad_fn
            if call.node is not None:
                recording.by_output.setdefault(call.node, []).append(call)
        recording.calls.append(call)

    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
        handles.append(module.register_forward_hook(after))
    try:
        outputs = model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return recording, outputs


def operands(node: Node) -> list[Node]:
    """Nodes that a node takes its inputs from, without constants and parameters."""
    return [
        next for next, _ in node.next_functions if next is not None and next.name() != "torch::autograd::AccumulateGrad"
    ]


def is_transparent(node: Node) -> bool:
    """True for a node with one input that it only scales, reshapes or casts."""
    return node.name() in _TRANSPARENT and len(operands(node)) == 1


def upstream(node: Node, stop: set[Node]) -> Iterator[Node]:
    """Nodes from which `node` is computed, nearest first, itself included, without those behind the `stop` nodes."""
    seen, queue = {node}, [node]
    while queue:
        current = queue.pop(0)
        yield current
        if current in stop:
            continue
        for next in operands(current):
            if next not in seen:
                seen.add(next)
                queue.append(next)


def pattern_of(name: str) -> str:
    """Name with `#` in place of each number.

    >>> pattern_of("encoder.layer.11.output")
    'encoder.layer.#.output'
    """
    return re.sub(r"(?<![^.])\d+(?![^.])", "#", name)
