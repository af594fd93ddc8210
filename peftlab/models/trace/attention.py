"""Linear layers that make the queries, keys and values of attention, and the last one of a feed-forward block."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from peftlab.models.trace.recording import Call, Node, Recording, operands, upstream
from peftlab.models.trace.sublayers import Sum, mixes

_PRODUCTS = {"BmmBackward0", "MmBackward0", "AddmmBackward0", "BaddbmmBackward0"}


@dataclass(frozen=True)
class Projections:
    """Full names of linear layers."""

    queries: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    values: frozenset[str] = frozenset()

    def __or__(self, other: Projections) -> Projections:
        return Projections(self.queries | other.queries, self.keys | other.keys, self.values | other.values)


def projections(recording: Recording, sums: Sequence[Sum]) -> Projections:
    """Projections of every attention: those nearest to a softmax and to what it weighs."""
    found = Projections()
    for each in sums:
        found |= _of_sum(recording, each)
    return found


def last_linear(recording: Recording, each: Sum, width: int) -> frozenset[str]:
    """Linear layers of this output width that are nearest to the end of the sublayer."""
    region = {each.residual, each.layer.source}
    linears = _linears(recording, each)
    return frozenset(
        name for name, node in _nearest(each.hidden, region, linears).items() if _width(linears[node]) == width
    )


def _of_sum(recording: Recording, each: Sum) -> Projections:
    stop = {each.residual, each.layer.source}
    region = list(upstream(each.hidden, stop))
    softmaxes = [node for node in region if node.name().startswith(("SoftmaxBackward", "SafeSoftmax"))]
    linears = _linears(recording, each)
    queries, keys, values = set[str](), set[str](), set[str]()
    for node in region:  # the product of the weights and the values
        if node.name() in _PRODUCTS and len(operands(node)) == 2:
            sides = [_leads_to(side, softmaxes, stop) for side in operands(node)]
            if sides.count(True) == 1:
                values |= _nearest(operands(node)[sides.index(False)], stop, linears).keys()
    for softmax in softmaxes:  # the product of queries and keys
        for node in _without_products(operands(softmax)[0], stop):
            if node.name() in _PRODUCTS:
                for name, made in _nearest(node, stop, linears).items():
                    (keys if mixes(each.hidden, made, each.layer.shape) else queries).add(name)
    queries = queries or values & keys  # one projection for all three
    return Projections(frozenset(queries), frozenset(keys), frozenset(values))


def _linears(recording: Recording, each: Sum) -> dict[Node, Call]:
    prefix = f"{each.layer.name}."
    return {
        call.node: call
        for call in recording.calls
        if call.name.startswith(prefix) and isinstance(call.module, (nn.Linear, Conv1D)) and call.output is not None
    }


def _width(call: Call) -> int:
    return int(call.output.shape[-1]) if call.output is not None else 0


def _nearest(node: Node, stop: set[Node], linears: dict[Node, Call]) -> dict[str, Node]:
    """Linear layers from which `node` is computed without another linear layer between, with their output nodes."""
    return {linears[each].name: each for each in upstream(node, stop | linears.keys()) if each in linears}


def _leads_to(node: Node, targets: Iterable[Node], stop: set[Node]) -> bool:
    return not set(targets).isdisjoint(_without_products(node, stop))


def _without_products(node: Node, stop: set[Node]) -> list[Node]:
    """Nodes from which `node` is computed, up to the nearest matrix products."""
    seen, queue = {node}, [node]
    while queue:
        current = queue.pop()
        if current in stop or current.name() in _PRODUCTS:
            continue
        for next in operands(current):
            if next not in seen:
                seen.add(next)
                queue.append(next)
    return list(seen)
