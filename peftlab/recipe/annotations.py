"""Lookup of a recipe's models by key, through unions, lists and mappings."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel

from peftlab.component import Component
from peftlab.recipe.yaml_reader import Key


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models that an annotation admits, members of unions included."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (Annotated, typing.Union, types.UnionType):
        for argument in typing.get_args(annotation):
            yield from models_in(argument)


def components_in(annotation: Any) -> dict[str, type[Component]]:
    """The components that an annotation admits, by kind."""
    return {
        str(model.model_fields["kind"].default): model
        for model in models_in(annotation)
        if issubclass(model, Component)
    }


def annotation_of(annotation: Any, name: str | int) -> Any:
    """The annotation of field `name` of a model, or of the values of a mapping or list; None if there is none."""
    for model in models_in(annotation):
        if name in model.model_fields:
            return model.model_fields[str(name)].annotation
    return typing.get_args(annotation)[-1] if typing.get_origin(annotation) in (dict, list) else None


def annotation_at(annotation: Any, key: Key) -> Any:
    """The annotation at the end of a path of names and indexes; None if there is none."""
    for name in key:
        annotation = annotation_of(annotation, name)
    return annotation


def model_for(annotation: Any, values: object) -> type[BaseModel] | None:
    """The one model that a mapping of values is read into: the member of a union with its kind."""
    components = components_in(annotation)
    if components:
        return components.get(str(values.get("kind"))) if isinstance(values, dict) else None
    return next(models_in(annotation), None)
