"""Tables of `datasets`, which may have class labels with names, and columns that no task reads, e.g. images."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from peftlab.data.examples import Row, Unreadable
from peftlab.errors import UserError

if TYPE_CHECKING:
    import pyarrow
    from datasets import ClassLabel

LIBRARY_ERRORS = (OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError, ImportError, MemoryError)
"""Raised by pyarrow and datasets for a file that they cannot read, or for a type that needs another library."""
METADATA = b"huggingface"  # key of the features in a table's metadata


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def table_rows(table: pyarrow.Table, where: str) -> list[Row]:
    """Rows of an Arrow table. A column that `datasets` cannot represent is unreadable. Raises UserError."""
    import datasets

    unreadable: dict[str, Unreadable] = {}
    names = table.column_names
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            unreadable[name] = Unreadable(f"two columns are named {name!r}")
    kept = [position for position, name in enumerate(names) if name not in unreadable]
    columns = []
    for position in kept:
        part = _with_own_metadata(table.select([position]))
        try:
            columns.append((names[position], datasets.Dataset(part)))
        except LIBRARY_ERRORS as error:
            unreadable[names[position]] = Unreadable(f"is of a type that cannot be read: {first_line(error)}")
    if not columns:
        raise UserError(f"{where}: has no column that can be read")
    features = {name: dataset.features[name] for name, dataset in columns}
    return _rows({name: dataset.data.table for name, dataset in columns}, features, unreadable, where)


def dataset_rows(dataset: object, where: str) -> list[Row]:
    """Rows of a `datasets.Dataset`, with names in place of class numbers."""
    from datasets import Dataset

    assert isinstance(dataset, Dataset)
    flat = dataset.flatten_indices() if dataset._indices is not None else dataset
    tables = {name: flat.data.table.select([name]) for name in flat.column_names}
    return _rows(tables, dict(flat.features), {}, where)


def _rows(
    tables: dict[str, pyarrow.Table], features: dict[str, Any], unreadable: dict[str, Unreadable], where: str
) -> list[Row]:
    """Rows of tables of one column each, by name, and their features."""
    import pyarrow
    from datasets import ClassLabel, List

    unreadable = dict(unreadable)
    values: dict[str, list[Any]] = {}
    labels: dict[str, ClassLabel] = {}
    count = next(iter(tables.values())).num_rows if tables else 0
    for name, feature in features.items():
        other = _unplain(feature)
        if other is not None:
            unreadable[name] = Unreadable(f"is of type {other}, which no task reads")
            continue
        try:
            values[name] = tables[name].column(0).to_pylist()
        except (pyarrow.ArrowException, *LIBRARY_ERRORS) as error:
            unreadable[name] = Unreadable(f"cannot be read: {first_line(error)}")
            continue
        inner = feature.feature if isinstance(feature, List) else feature
        if isinstance(inner, ClassLabel):
            labels[name] = inner
    rows = []
    for number in range(count):
        record = {name: column[number] for name, column in values.items()}
        for name, label in labels.items():
            try:
                record[name] = _class_name(record[name], label)
            except ValueError:
                record[name] = Unreadable(f"{record[name]} is not the number of one of {label.num_classes} classes")
        rows.append(Row(f"{where} row {number + 1}", {**record, **unreadable}))
    return rows


def _unplain(feature: Any) -> str | None:
    """Name of the first type in a feature that is neither a value nor a list or mapping of values, e.g. Image."""
    from datasets import ClassLabel, LargeList, List, Value

    if isinstance(feature, (Value, ClassLabel)) or type(feature).__name__.startswith("Translation"):
        return None
    if isinstance(feature, (List, LargeList)):
        return _unplain(feature.feature)
    if isinstance(feature, dict):
        return next((name for name in map(_unplain, feature.values()) if name is not None), None)
    return type(feature).__name__


def _with_own_metadata(table: pyarrow.Table) -> pyarrow.Table:
    """A table of one column, whose metadata describe this column only: others may have unknown types."""
    metadata = dict(table.schema.metadata or {})
    try:
        features = json.loads(metadata[METADATA])["info"]["features"]
        own = {name: features[name] for name in table.column_names}
    except (KeyError, TypeError, ValueError):
        return table.replace_schema_metadata(None)
    return table.replace_schema_metadata({METADATA: json.dumps({"info": {"features": own}}).encode()})


def _class_name(value: Any, label: ClassLabel) -> Any:
    """The name of a class, or of each class of a list. None for -1, the number of unlabeled rows."""
    if isinstance(value, list):
        return [_class_name(item, label) for item in value]
    return None if value is None or value < 0 else label.int2str(value)
