"""What may stand at a key of a file, in words, by the JSON schema of the model that the file is read into."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from peftlab.recipe.yaml_reader import Key

Node = dict[str, Any]  # of a JSON schema

SCALARS = {"integer": "a whole number", "number": "a number", "string": "a text", "boolean": "true or false"}
SEVERAL = {"integer": "whole numbers", "number": "numbers", "string": "texts"}
MOST_KEYS = 4


def expected(model: type[BaseModel], key: Key) -> str:
    """Every form that a value of this key may have.

    >>> from peftlab.training.settings import Training
    >>> expected(Training, ("adam_epsilon",)), expected(Training, ())
    ('a number', 'a mapping (epochs, steps, learning_rate, schedule, ...)')
    """
    schema = model.model_json_schema()
    nodes = [schema]
    for part in key:
        nodes = [below for node in nodes for form in _forms(node, schema) for below in _below(form, part)]
    words = dict.fromkeys(_words(form) for node in nodes for form in _forms(node, schema))
    return " or ".join(sorted(filter(None, words), key=lambda word: word.startswith("a mapping")))


def _forms(node: Node, schema: Node) -> Iterator[Node]:
    """What a node may be, references followed."""
    if "$ref" in node:
        yield from _forms(schema["$defs"][node["$ref"].rpartition("/")[2]], schema)
    elif several := node.get("anyOf") or node.get("oneOf"):
        for other in several:
            yield from _forms(other, schema)
    else:
        yield node


def _below(form: Node, part: str | int) -> Iterator[Node]:
    """The values in a list or a mapping of this form."""
    if isinstance(part, int):
        found = [form.get("items")]
    elif part in form.get("properties", {}):
        found = [form["properties"][part]]
    else:  # any key of a mapping; pydantic says false where there are no others
        found = [*form.get("patternProperties", {}).values(), form.get("additionalProperties")]
    yield from (node for node in found if isinstance(node, dict))


def _words(form: Node) -> str:
    sort = form.get("type", "")
    if sort == "array":
        of_what = SEVERAL.get(form.get("items", {}).get("type", ""), "")
        return f"a list of {of_what}" if of_what else "a list"
    if sort != "object":
        return SCALARS.get(sort, "")
    names = list(form.get("properties", {}))
    if "kind" in names:
        return "a mapping (kind, ...)"
    listed = ", ".join([*names[:MOST_KEYS], *(["..."] if len(names) > MOST_KEYS else [])])
    return f"a mapping ({listed})" if listed else "a mapping"
