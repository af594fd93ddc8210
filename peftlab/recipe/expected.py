"""Plain description of the values that a key accepts, for error messages."""

from __future__ import annotations

from pydantic import BaseModel

from peftlab.recipe.json_schema import Node, alternatives, children
from peftlab.recipe.yaml_reader import Key

SCALARS = {"integer": "a whole number", "number": "a number", "string": "a text", "boolean": "true or false"}
ITEMS = {"integer": "whole numbers", "number": "numbers", "string": "texts"}
MAX_KEYS = 4  # named of a mapping


def expected(model: type[BaseModel], key: Key) -> str:
    """The types of value that `key` of a model accepts.

    >>> from peftlab.training.settings import Training
    >>> expected(Training, ("adam_epsilon",)), expected(Training, ())
    ('a number', 'a mapping (epochs, steps, learning_rate, schedule, ...)')
    """
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    nodes: list[Node] = [schema]
    for name in key:
        nodes = [
            child for node in nodes for option in alternatives(node, definitions) for child in children(option, name)
        ]
    texts = dict.fromkeys(_text(option) for node in nodes for option in alternatives(node, definitions))
    return " or ".join(sorted(filter(None, texts), key=lambda text: text.startswith("a mapping")))


def _text(node: Node) -> str:
    type_name = node.get("type", "")
    if type_name == "array":
        items = ITEMS.get(node.get("items", {}).get("type", ""), "")
        return f"a list of {items}" if items else "a list"
    if type_name != "object":
        return SCALARS.get(type_name, "")
    keys = list(node.get("properties", {}))
    if "kind" in keys:
        return "a mapping (kind, ...)"
    shown = ", ".join([*keys[:MAX_KEYS], *(["..."] if len(keys) > MAX_KEYS else [])])
    return f"a mapping ({shown})" if shown else "a mapping"
