"""Residual sums of transformer layers: the module that ends each sublayer, the reader of the residual, the norm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from peftlab.models.trace.recording import LENGTH, Call, Node, Recording, is_transparent, operands, upstream


@dataclass(frozen=True)
class Layer:
    """A repeated layer of the model, and its last call."""

    name: str
    source: Node
    """Its input."""
    output: Node
    """Its output."""
    shape: tuple[int, ...]
    """(batch, length, width) of both."""


@dataclass(frozen=True)
class Sum:
    """One residual sum `residual + hidden` in a layer."""

    layer: Layer
    residual: Node
    hidden: Node
    norm: str | None
    """Full name of the norm applied to the sum."""
    ends: tuple[str, ...]
    """Full names of the modules whose output is `hidden`, the last to finish first."""
    tuple_ends: tuple[str, ...]
    """The same of modules that return it as the first part of a tuple."""
    readers: tuple[str, ...]
    """Full names of the modules whose first argument is `residual`, in the order of their calls."""
    mixes: bool
    """True if `hidden` at one position depends on `residual` at others: self-attention, a convolution, a state."""
    crosses: bool
    """True if `hidden` depends on the outputs of other layers than the one before: cross-attention."""
    weights: int
    """Number of parameters of the modules that ran between `residual` and `hidden`."""


def layers_of(model: nn.Module, recording: Recording) -> list[Layer]:
    """Layers: the members of the outermost lists of modules that map a sequence to one of the same shape."""
    found: list[Layer] = []
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    for owner in lists:
        if any(owner.startswith(f"{layer.name}.") for layer in found):
            continue
        for child, _ in model.get_submodule(owner).named_children():
            call = recording.last(f"{owner}.{child}")
            if call is None or call.output is None or not call.inputs:
                continue
            shape = tuple(call.output.shape)
            if len(shape) == 3 and call.inputs[0].shape == shape and call.source is not None and call.node is not None:
                found.append(Layer(call.name, call.source, call.node, shape))
    return found


def sums_of(recording: Recording, layers: Sequence[Layer]) -> list[Sum]:
    """Residual sums of the layers, the last one of each layer first."""
    outputs = {layer.output for layer in layers}
    return [found for layer in layers for found in _Walk(recording, layer, outputs).sums()]


class _Walk:
    """Walk through the autograd graph of one layer, from its output back to its input."""

    def __init__(self, recording: Recording, layer: Layer, outputs: set[Node]) -> None:
        self.recording, self.layer = recording, layer
        self.source = layer.source
        self.foreign = outputs - {layer.output, self.source}
        self._streams: dict[Node, bool] = {}

    def sums(self) -> Iterator[Sum]:
        queue: list[tuple[Node, str | None]] = [(self.layer.output, None)]
        seen = set()
        while queue:
            node, norm = queue.pop(0)
            if node is self.source or node in seen:
                continue
            seen.add(node)
            if (call := self._norm(node)) is not None and call.source is not None:
                queue.append((call.source, call.name))
            elif node.name().startswith("AddBackward") and self.is_stream(node):
                parts = operands(node)
                for index, part in enumerate(parts):
                    if self.is_stream(part):
                        queue.append((part, None))
                    elif len(parts) == 2 and self.is_stream(parts[1 - index]):
                        yield from self._sums(parts[1 - index], part, norm)
            elif is_transparent(node):
                queue.append((operands(node)[0], norm))

    def is_stream(self, node: Node) -> bool:
        """True for the layer's input, a sum with it, and a norm or a multiple of either."""
        if node not in self._streams:
            self._streams[node] = False
            self._streams[node] = self._is_stream(node)
        return self._streams[node]

    def _is_stream(self, node: Node) -> bool:
        if node is self.source:
            return True
        if (call := self._norm(node)) is not None:
            return call.source is not None and self.is_stream(call.source)
        if node.name().startswith("AddBackward"):
            return any(self.is_stream(part) for part in operands(node))
        return is_transparent(node) and self.is_stream(operands(node)[0])

    def _norm(self, node: Node) -> Call | None:
        """Call of the norm that made this node."""
        calls = [call for call in self.recording.by_output.get(node, ()) if self._inside(call.name) and is_norm(call)]
        return calls[0] if calls else None

    def _inside(self, name: str) -> bool:
        return name.startswith(f"{self.layer.name}.")

    def _once(self, name: str) -> bool:
        """True for a module that each call of the layer calls once: Phi's one dropout is for both sublayers."""
        return self._inside(name) and self.recording.count(name) == self.recording.count(self.layer.name)

    def _sums(self, residual: Node, hidden: Node, norm: str | None) -> Iterator[Sum]:
        """The sum, or one for each term of `hidden` where no module makes the whole: attention next to feed-forward."""
        ends, node = self._ends(hidden)
        if not ends and node.name().startswith("AddBackward") and len(operands(node)) == 2:
            for term in operands(node):
                yield from self._sums(residual, term, norm)
            return
        reads = self._readers(residual, hidden)
        while not reads and residual is not self.source:  # in a parallel layer both sublayers read the layer's input
            inner = [part for part in operands(residual) if self.is_stream(part)]
            if not inner:
                break
            residual = inner[0]
            reads = self._readers(residual, hidden)
        between = set(upstream(hidden, {residual, self.source}))
        own = [call.module for call in self._calls_in(between)]
        weights = {id(p): p.numel() for module in own for p in module.parameters()}
        yield Sum(
            layer=self.layer,
            residual=residual,
            hidden=hidden,
            norm=norm,
            ends=tuple(call.name for call in reversed(ends) if call.bare),
            tuple_ends=tuple(call.name for call in reversed(ends) if not call.bare),
            readers=reads,
            mixes=self._mixes(residual, hidden),
            crosses=bool(between & self.foreign),
            weights=sum(weights.values()),
        )

    def _ends(self, node: Node) -> tuple[list[Call], Node]:
        """Calls that made `node`, or what it only scales or reshapes; and the node at which the search ended."""
        while True:
            calls = [call for call in self.recording.by_output.get(node, ()) if self._once(call.name)]
            if calls or not is_transparent(node):
                return calls, node
            node = operands(node)[0]

    def _readers(self, residual: Node, hidden: Node) -> tuple[str, ...]:
        between = set(upstream(hidden, {residual}))
        calls = [
            call
            for call in self.recording.by_input.get(residual, ())
            if call.positional
            and self._once(call.name)
            and call.output is not None
            and (call.node in between or not call.bare)
        ]
        return tuple(dict.fromkeys(call.name for call in calls))

    def _calls_in(self, nodes: set[Node]) -> list[Call]:
        return [
            call
            for call in self.recording.calls
            if self._inside(call.name) and call.output is not None and call.node in nodes
        ]

    def _mixes(self, residual: Node, hidden: Node) -> bool:
        return mixes(hidden, residual, self.layer.shape)


def mixes(hidden: Node, of: Node, shape: tuple[int, ...]) -> bool:
    """True if one position of `hidden`, whose shape is (batch, length, width), depends on several positions of `of`."""
    weight = torch.zeros(shape)
    weight[0, min(shape[1], LENGTH) - 1] = torch.linspace(0.5, 1.5, shape[-1])
    weight = weight.reshape(tuple(hidden._input_metadata[0].shape))
    edges = (GradientEdge(hidden, 0),), (GradientEdge(of, 0),)
    (gradient,) = torch.autograd.grad(*edges, (weight,), retain_graph=True, allow_unused=True)
    if gradient is None:
        return False
    return int(gradient.reshape(-1, gradient.shape[-1]).any(dim=1).sum()) > 1


def is_norm(call: Call) -> bool:
    """True if the call's output does not change with the scale of its only input: it is a norm's."""
    if len(call.inputs) != 1 or call.output is None or call.inputs[0].shape != call.output.shape:
        return False
    if any(True for _ in call.module.children()):
        return False
    with torch.no_grad():
        source = call.inputs[0]
        scaled = call.module(source * 8 / source.std())
        once = call.module(source * 2 / source.std())
    return isinstance(scaled, Tensor) and bool(torch.allclose(scaled, once, rtol=0.01, atol=0.01)) and bool(once.any())
