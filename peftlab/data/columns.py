"""From the columns of a source to the fields of a task: names, paths, and values of formats that know only text."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftlab.data.examples import Row, Unreadable
from peftlab.errors import UserError, nearest, printable

ABSENT = object()
FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
"""A label's column, as text in lower case -> True if the row has the label."""
LABEL_FIELD = "label"


@dataclass(frozen=True)
class ColumnMapping:
    """The columns from which a task's fields are read."""

    required: tuple[str, ...]
    """Fields that every row must have."""
    optional: tuple[str, ...]
    """Fields that a row may have."""
    columns: Mapping[str, str]
    """Column by field, where the names differ. `answers.text` is a part of a field, `translation.en` of a column."""
    numbers: Collection[str]
    """Columns whose text is read as a number."""
    lists: Mapping[str, str]
    """Separator by column, for columns whose text is read as a list."""
    labels_from: tuple[str, ...] = ()
    """Columns of 0 and 1, one per label, that make the list of the row's labels."""

    @property
    def fields(self) -> tuple[str, ...]:
        return (*self.required, *self.optional)

    @functools.cached_property
    def _read(self) -> tuple[str, ...]:
        """The fields, and parts of fields, that are read from one column each."""
        parts = [name for name in self.columns if "." in name and name not in self.fields]
        made = {name.partition(".")[0] for name in parts} | ({LABEL_FIELD} if self.labels_from else set())
        return (*(field for field in self.fields if field not in made), *parts)

    def column(self, field: str) -> str:
        return self.columns.get(field, field)

    def check(self, rows: Mapping[str, Sequence[Row]], hint: str = "") -> None:
        """Raise UserError if a setting names an unknown field or column, or a required column is in no row.

        `hint` ends the message about a column that is missing.
        """
        self._check_settings()
        readable = [row for part in rows.values() for row in part if row.fault is None]
        if not readable:
            return
        available = dict.fromkeys(name for row in readable for name in row.fields)
        for name, option in [(field, "") for field in self._read] + [
            (name, "labels_from") for name in self.labels_from
        ]:
            column = name if option else self.column(name)
            if name in self.optional and name not in self.columns:
                continue
            if all(value_at(row.fields, column) is ABSENT for row in readable):
                missing = (
                    _missing(available, column, name) if not option else _missing_column(available, column, option)
                )
                raise UserError(f"{readable[0].where}: {missing}{hint}")
            first = value_at(readable[0].fields, column)
            if isinstance(first, Unreadable) and all(value_at(row.fields, column) == first for row in readable):
                raise UserError(f"{readable[0].where}: {name}: {first.reason}")

    def _check_settings(self) -> None:
        unknown = [
            name for name in self.columns if name not in self.fields and name.partition(".")[0] not in self.fields
        ]
        if unknown:
            raise UserError(f"data.columns: the task has no field {unknown[0]!r}{nearest(unknown[0], self.fields)}")
        if self.labels_from and (LABEL_FIELD not in self.fields or LABEL_FIELD in self.columns):
            reason = "data.columns has one too" if LABEL_FIELD in self.columns else "the task has none"
            raise UserError(f"data.labels_from: makes the field {LABEL_FIELD!r}, but {reason}")
        columns = [self.column(field) for field in self._read]
        for option, names in (("numbers", self.numbers), ("lists", self.lists)):
            unused = [name for name in names if name not in columns]
            if unused:
                unread = nearest(unused[0], columns)
                raise UserError(f"data.{option}: no field of the task is read from column {unused[0]!r}{unread}")

    def apply(self, row: Row, normalize: Callable[[Row], Row], check: Callable[[Row], object]) -> Row:
        """The row under the task's names, with a fault if a field is missing or a function raises UserError for it."""
        if row.fault is not None:
            return row
        values: dict[str, Any] = {}
        for field in self._read:
            column = self.column(field)
            value = row.fields.get(column, ABSENT) if "." not in column else value_at(row.fields, column)
            if field in self.optional and (value is None or value is ABSENT):
                continue
            if value is ABSENT:
                return Row(row.where, {}, f"{field}: {_missing(row.fields, column, field)}")
            if isinstance(value, Unreadable):
                return Row(
                    row.where, {}, value.reason if value.reason.startswith(column) else f"{field}: {value.reason}"
                )
            if column in self.numbers and isinstance(value, str):
                try:
                    value = float(value)
                except ValueError:
                    return Row(row.where, {}, f"{field}: {value[:40]!r} is not a number")
            if column in self.lists and isinstance(value, str):
                value = [item for part in value.split(self.lists[column]) if (item := part.strip())]
            values[field] = value
        if self.labels_from:
            labels, fault = _labels(row, self.labels_from)
            if fault is not None:
                return Row(row.where, {}, fault)
            values[LABEL_FIELD] = labels
        if not values:
            return Row(row.where, {}, f"no column for any of the task's fields {', '.join(self.fields)}")
        named = Row(row.where, nested(values))
        try:
            named = normalize(named)
            check(named)
        except UserError as error:
            return Row(row.where, values, str(error).removeprefix(f"{row.where}: "))
        return named


def value_at(fields: Mapping[str, Any], path: str) -> Any:
    """The value of a column, or at a path into a column's mappings and lists; ABSENT if there is none.

    >>> value_at({"translation": {"en": "Hi", "de": ["Hallo"]}, "a.b": 1}, "translation.de.0")
    'Hallo'
    >>> value_at({"translation": {"en": "Hi"}, "a.b": 1}, "a.b")
    1
    """
    if path in fields:
        return fields[path]
    value: Any = fields
    for name in path.split("."):
        if isinstance(value, Mapping) and name in value:
            value = value[name]
        elif isinstance(value, (list, tuple)) and name.isdigit() and int(name) < len(value):
            value = value[int(name)]
        else:
            return value if isinstance(value, Unreadable) else ABSENT
    return value


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values with the parts of a field in one mapping.

    >>> nested({"question": "Who?", "answers.text": "Ada", "answers.answer_start": 3})
    {'question': 'Who?', 'answers': {'text': 'Ada', 'answer_start': 3}}
    """
    if not any("." in name for name in values):
        return dict(values)
    made: dict[str, Any] = {}
    for name, value in values.items():
        field, _, part = name.partition(".")
        if part:
            made.setdefault(field, {})[part] = value
        else:
            made[name] = value
    return made


def flag(value: object) -> bool | None:
    """True or False for 1 and 0 as the formats have them; None for any other value.

    >>> flag("1"), flag(0.0), flag(True), flag("False"), flag(2), flag(None)
    (True, False, True, False, None, None)
    """
    return FLAGS.get(str(value).strip().lower())


def _labels(row: Row, columns: Sequence[str]) -> tuple[list[str], str | None]:
    """The columns that are 1, and a fault if one is neither 0 nor 1."""
    labels = []
    for column in columns:
        value = value_at(row.fields, column)
        if value is ABSENT:
            return [], f"{column}: {_missing_column(row.fields, column, 'labels_from')}"
        has = flag(value)
        if has is None:
            found = value.reason if isinstance(value, Unreadable) else f"0 or 1 was expected, found {str(value)[:40]!r}"
            return [], f"{column}: {found}"
        if has:
            labels.append(column)
    return labels, None


def _missing(available: Iterable[str], column: str, field: str) -> str:
    return f"no column {column!r} for the task's field {field!r}{_available(available, column)}"


def _missing_column(available: Iterable[str], column: str, option: str) -> str:
    return f"no column {column!r} for data.{option}{_available(available, column)}"


def _available(available: Iterable[str], column: str) -> str:
    names = [printable(str(name)) for name in available]
    return f"{nearest(column, names)}; it has: {', '.join(names)}"
