"""From the columns of a source to the fields of a task: names, and values of formats that know only text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from peftlab.data.examples import Row
from peftlab.errors import UserError, nearest, printable


@dataclass(frozen=True)
class ColumnMapping:
    """The columns from which a task's fields are read."""

    required: tuple[str, ...]
    """Fields that every row must have."""
    optional: tuple[str, ...]
    """Fields that a row may have."""
    columns: Mapping[str, str]
    """Column by field, where the names differ."""
    numbers: Collection[str]
    """Columns whose text is read as a number."""
    lists: Mapping[str, str]
    """Separator by column, for columns whose text is read as a list."""

    @property
    def fields(self) -> tuple[str, ...]:
        return (*self.required, *self.optional)

    def column(self, field: str) -> str:
        return self.columns.get(field, field)

    def check(self, rows: Mapping[str, Sequence[Row]]) -> None:
        """Raise UserError if a setting names an unknown field or column, or a required column is in no row."""
        unknown = [field for field in self.columns if field not in self.fields]
        if unknown:
            raise UserError(f"data.columns: the task has no field {unknown[0]!r}{nearest(unknown[0], self.fields)}")
        columns = [self.column(field) for field in self.fields]
        for option, names in (("numbers", self.numbers), ("lists", self.lists)):
            unused = [name for name in names if name not in columns]
            if unused:
                hint = nearest(unused[0], columns)
                raise UserError(f"data.{option}: no field of the task is read from column {unused[0]!r}{hint}")
        readable = [row for part in rows.values() for row in part if row.fault is None]
        available = dict.fromkeys(name for row in readable for name in row.fields)
        for field in self.fields:
            if field in self.optional and field not in self.columns:
                continue
            if readable and self.column(field) not in available:
                raise UserError(f"{readable[0].where}: {_missing(available, self.column(field), field)}")

    def apply(self, row: Row, check: Callable[[Row], object]) -> Row:
        """The row under the task's names, with a fault if a field is missing or `check` raises UserError for it."""
        if row.fault is not None:
            return row
        values = {}
        for field in self.fields:
            column = self.column(field)
            if field in self.optional and row.fields.get(column) is None:
                continue
            if column not in row.fields:
                return Row(row.where, {}, f"{field}: {_missing(row.fields, column, field)}")
            value = row.fields[column]
            if column in self.numbers and isinstance(value, str):
                try:
                    value = float(value)
                except ValueError:
                    return Row(row.where, {}, f"{field}: {value[:40]!r} is not a number")
            if column in self.lists and isinstance(value, str):
                value = [item for part in value.split(self.lists[column]) if (item := part.strip())]
            values[field] = value
        if not values:
            return Row(row.where, {}, f"no column for any of the task's fields {', '.join(self.fields)}")
        named = Row(row.where, values)
        try:
            check(named)
        except UserError as error:
            return Row(row.where, values, str(error).removeprefix(f"{row.where}: "))
        return named


def _missing(available: Iterable[str], column: str, field: str) -> str:
    names = [printable(str(name)) for name in available]
    hint = nearest(column, names) or f"; it has: {', '.join(names)}"
    return f"no column {column!r} for the task's field {field!r}{hint}"
