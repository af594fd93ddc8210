"""Traversal of a JSON schema: the alternatives of a node and the nodes below it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Node = Mapping[str, Any]


def alternatives(node: Node, definitions: Node) -> Iterator[Node]:
    """The nodes that a value may match: members of unions, references resolved."""
    if "$ref" in node:
        yield from alternatives(definitions[node["$ref"].rpartition("/")[2]], definitions)
    elif members := node.get("anyOf") or node.get("oneOf"):
        for member in members:
            yield from alternatives(member, definitions)
    else:
        yield node


def children(node: Node, name: str | int) -> Iterator[Node]:
    """The nodes of the item at index `name` of a list, or of the value of the key `name` of a mapping."""
    if isinstance(name, int):
        candidates = [node.get("items")]
    elif name in node.get("properties", {}):
        candidates = [node["properties"][name]]
    else:  # any key; pydantic writes false where no other keys are allowed
        candidates = [*node.get("patternProperties", {}).values(), node.get("additionalProperties")]
    yield from (candidate for candidate in candidates if isinstance(candidate, dict))


def kind_of(node: Node) -> str | None:
    """Kind of the component that an object node describes; None for any other node."""
    kind: str | None = node.get("properties", {}).get("kind", {}).get("const")
    return kind
