"""Inputs of sequence classification: a text, a pair of texts, or a text with two marked entities."""

from __future__ import annotations

import json
from typing import Literal

from peftlab.data.examples import Row
from peftlab.errors import UserError
from peftlab.tasks.entity_markers import mark_entities, span, words

InputType = Literal["text", "pair", "entities"]
FIELDS: dict[InputType, tuple[str, ...]] = {"pair": ("text_pair",), "entities": ("head", "tail"), "text": ()}
"""Fields of each input type in addition to `text`."""


def input_type(row: Row) -> InputType:
    """The input type that the row's fields imply."""
    if any(row.fields.get(name) is not None for name in FIELDS["entities"]):
        return "entities"
    return "pair" if row.fields.get("text_pair") is not None else "text"


def input_texts(row: Row, type_: InputType) -> tuple[str, str | None, int]:
    """The text, the second text of a pair, and the end of the last entity marker in the text (0 without entities).

    Raises UserError if the fields are not those of the input type, or a text is empty.
    """
    text, end = row.fields["text"], 0
    required = FIELDS[type_]
    for name in (*FIELDS["pair"], *FIELDS["entities"]):
        if (row.fields.get(name) is None) is (name in required):
            state = "missing" if name in required else "not expected"
            raise UserError(f"{row.where}: {name}: {state}: the input is {type_!r} by task.input or the first row")
    if "head" in required:
        text, end = mark_entities(words(row), span(row, "head"), span(row, "tail"))
    for name, value in (("text", text), ("text_pair", row.fields.get("text_pair", "-"))):
        if not isinstance(value, str):
            raise UserError(f"{row.where}: {name}: a string was expected, found {str(value)[:60]!r}")
        if not value.strip():
            raise UserError(f"{row.where}: {name}: an empty text")
    return text, row.fields.get("text_pair"), end


def row_from_line(text: str, type_: InputType, where: str) -> Row:
    """A row from a line of text, from two texts separated by a tab, or from a JSON object with the input's fields.

    Raises UserError if the line does not fit the input type.
    """
    required = ("text", *FIELDS[type_])
    if text.lstrip().startswith("{"):
        try:
            values = json.loads(text)
        except ValueError:
            values = None
        if isinstance(values, dict) and values.keys() >= set(required):
            return Row(where, {name: values[name] for name in required})
    if type_ == "pair" and text.count("\t") == 1:
        return Row(where, dict(zip(required, text.split("\t"), strict=True)))
    if type_ in ("pair", "entities"):
        tabs = " or two texts separated by a tab" if type_ == "pair" else ""
        raise UserError(f"{where}: a JSON object with {', '.join(required)}{tabs} was expected, found {text[:60]!r}")
    return Row(where, {"text": text})
