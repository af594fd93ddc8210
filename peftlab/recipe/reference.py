"""Reference of the keys of a recipe or suite, read from its models: type, default, meaning, example."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from peftlab.errors import UserError
from peftlab.recipe.annotations import components_in, models_in
from peftlab.recipe.json_schema import Node, alternatives, kind_of
from peftlab.recipe.yaml_reader import read_scalar

ITEM = "NAME"
"""Stands in a key for the names that a user chooses, as in `tasks.NAME.data`."""

LIST = "[]"
"""Marks a parent whose values are a list of mappings."""

EXAMPLE = re.compile(r"""e\.g\. (`[^`]+`|\{[^}]*\}|\[[^]]*\]|"[^"]*"|[\w./-]*\w)""")
"""An example value in a field's docstring."""


@dataclass(frozen=True)
class Entry:
    """One key, for one kind of component where it belongs to a component."""

    key: str
    """Path from the top of the file, e.g. `method.rank`."""
    kind: str | None
    """Kind of the component that has the key, e.g. `lora`; None for the keys of every other mapping."""
    type: str
    default: str
    """As YAML; "required" if there is none."""
    meaning: str
    example: str
    """The key with a value, as a line of YAML."""


def entries(model: type[BaseModel], documented: Collection[type[BaseModel]] = ()) -> list[Entry]:
    """Entries of every key, depth first. The keys of the models in `documented` are left out."""
    return list(_entries(model, "", None, (), documented))


def _entries(
    model: type[BaseModel],
    prefix: str,
    kind: str | None,
    parents: tuple[str, ...],
    documented: Collection[type[BaseModel]],
) -> Iterator[Entry]:
    schema = model.model_json_schema()
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        node = schema["properties"][name]
        yield Entry(
            key=key,
            kind=kind,
            type=type_text(node, schema.get("$defs", {})),
            default=_default(field),
            meaning=" ".join((node.get("description") or "").split()),
            example=_nested(parents, kind, name, _example_value(field, node, schema.get("$defs", {}))),
        )
        value, path, inner = _below(field.annotation, (*parents, name), f"{key}.")
        components = components_in(value)
        if components:
            for other, component in components.items():
                if component not in documented:
                    yield from _entries(component, inner, other, path, documented)
            continue
        for member in models_in(value):
            if member not in documented:
                yield from _entries(member, inner, None, path, documented)


def _below(annotation: Any, path: tuple[str, ...], key: str) -> tuple[Any, tuple[str, ...], str]:
    """The annotation of the values of a mapping or list of models, with their path and the start of their keys."""
    value = typing.get_args(annotation)[-1] if typing.get_origin(annotation) in (dict, list) else annotation
    if value is annotation or next(models_in(value), None) is None:
        return annotation, path, key
    if typing.get_origin(annotation) is list:
        return value, (*path[:-1], f"{path[-1]}{LIST}"), key
    return value, (*path, ITEM), f"{key}{ITEM}."


def type_text(node: Node, definitions: Node) -> str:
    """The values that a node of a JSON schema admits.

    >>> type_text({"type": "number", "minimum": 0, "exclusiveMaximum": 1}, {})
    'number, at least 0, below 1'
    >>> type_text({"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]}, {})
    'list of string; or null'
    """
    members = list(alternatives(node, definitions))
    kinds = [kind_of(member) for member in members if kind_of(member)]
    texts = [_member_text(member, definitions) for member in members if not kind_of(member)]
    if kinds:
        texts.append(f"mapping with `kind`: {', '.join(f'`{kind}`' for kind in kinds)}")
    return "; or ".join(dict.fromkeys(texts))


def _member_text(node: Node, definitions: Node) -> str:
    if "const" in node or "enum" in node:
        return " or ".join(f"`{yaml_text(value)}`" for value in node.get("enum", [node.get("const")]))
    name = node.get("type", "any value")
    if name == "array" and "prefixItems" in node:
        return f"list of {len(node['prefixItems'])}: {type_text(node['prefixItems'][0], definitions)}"
    if name == "array":
        return f"list of {type_text(node.get('items', {}), definitions)}"
    if name == "object":
        values = node.get("additionalProperties")
        return f"mapping of string to {type_text(values, definitions)}" if isinstance(values, dict) else "mapping"
    if name == "boolean":
        return "`true` or `false`"
    return ", ".join([name, *_limits(node)])


LIMITS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
    "minLength": "length at least",
    "maxLength": "length at most",
    "pattern": "matching",
}


def _limits(node: Node) -> Iterator[str]:
    for name, text in LIMITS.items():
        if name in node:
            yield f"{text} {f'`{node[name]}`' if name == 'pattern' else yaml_text(node[name])}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        return str(getattr(default, "kind", "the defaults of its keys"))
    return yaml_text(default)


def _example_value(field: FieldInfo, node: Node, definitions: Node) -> str:
    """The first valid one: an example of the field, one in its docstring, its default, a value of its type."""
    if field.examples:
        return yaml_text(field.examples[0])
    for quoted in EXAMPLE.findall(node.get("description") or ""):
        if _is_valid(quoted.strip("`"), field):
            return str(quoted.strip("`"))
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    if default is not None and not isinstance(default, BaseModel) and default not in ({}, [], (), ""):
        return yaml_text(default)
    return _sample(next(alternatives(node, definitions)))


def _is_valid(text: str, field: FieldInfo) -> bool:
    try:
        TypeAdapter(field.rebuild_annotation()).validate_json(json.dumps(read_scalar(text)), strict=True)
    except (UserError, ValidationError):
        return False
    return True


def _sample(node: Node) -> str:
    if "const" in node or "enum" in node:
        return yaml_text(node.get("enum", [node.get("const")])[0])
    if kind := kind_of(node):
        return kind
    name = node.get("type", "")
    if name == "integer":
        return yaml_text(node.get("minimum", 1))
    return {"array": "[...]", "object": "{...}", "boolean": "true", "number": "1.0"}.get(name, "...")


def _nested(parents: tuple[str, ...], kind: str | None, name: str, value: str) -> str:
    """`method: {kind: lora, rank: 8}`"""
    of_kind = "" if kind is None or name == "kind" else f"kind: {kind}, "
    text = f"{of_kind}{name}: {value}"
    for parent in reversed(parents):
        is_list = parent.endswith(LIST)
        text = f"{parent.removesuffix(LIST)}: [{{{text}}}]" if is_list else f"{parent}: {{{text}}}"
    return text


def yaml_text(value: Any) -> str:
    """A value as YAML on one line.

    >>> yaml_text(None), yaml_text(1e-8), yaml_text(["q", True]), yaml_text({"a": "b c"})
    ('null', '1e-8', '[q, true]', '{a: b c}')
    """
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{yaml_text(key)}: {yaml_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(yaml_text, value)) + "]"
    if isinstance(value, float):
        return re.sub(r"e([-+])0?", lambda exponent: f"e{exponent[1].strip('+')}", repr(value))
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z./][\w./ -]*", value):
        return value
    return json.dumps(value, ensure_ascii=False)
