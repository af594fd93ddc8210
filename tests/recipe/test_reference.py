"""The reference of all keys: every property has a description, and every example is valid."""

import json
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

from peftlab.recipe import Recipe
from peftlab.recipe.annotations import model_for
from peftlab.recipe.reference import Entry, entries
from peftlab.recipe.yaml_reader import read_scalar
from peftlab.suites.suite import Suite


@pytest.mark.parametrize("model", [Recipe, Suite])
def test_every_property_of_the_schema_has_a_description(model: type[BaseModel]) -> None:
    schema = model.model_json_schema()
    objects = {model.__name__: schema, **schema["$defs"]}
    assert len(objects) > 20
    undescribed = [
        f"{name}.{key}"
        for name, object in objects.items()
        for key, value in object.get("properties", {}).items()
        if not value.get("description", "").strip()
    ]
    assert undescribed == []


@pytest.mark.parametrize("model", [Recipe, Suite])
def test_every_key_has_an_entry_with_a_type_and_a_default(model: type[BaseModel]) -> None:
    for entry in entries(model):
        assert entry.type, entry
        assert entry.default, entry


@pytest.mark.parametrize("entry", [entry for entry in entries(Suite) if "." not in entry.key], ids=lambda e: e.key)
def test_the_example_of_a_key_of_a_suite_is_valid(entry: Entry) -> None:
    value = read_scalar("{" + entry.example + "}")[entry.key]
    TypeAdapter(Suite.model_fields[entry.key].rebuild_annotation()).validate_json(json.dumps(value), strict=True)


@pytest.mark.parametrize("entry", entries(Recipe), ids=lambda entry: f"{entry.key}-{entry.kind}")
def test_the_example_of_a_key_is_valid(entry: Entry) -> None:
    value = read_scalar("{" + entry.example + "}")
    owner: Any = Recipe
    for name in entry.key.split("."):
        model = model_for(owner, value) or owner
        assert name in value, entry.example
        value, owner = value[name], model.model_fields[name]
        field, owner = owner, owner.annotation
    TypeAdapter(field.rebuild_annotation()).validate_json(json.dumps(value), strict=True)
