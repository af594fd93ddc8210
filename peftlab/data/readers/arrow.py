"""Tables of `datasets`, which may have class labels with names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftlab.data.examples import Row

if TYPE_CHECKING:
    from datasets import ClassLabel


def dataset_rows(dataset: object, where: str) -> list[Row]:
    """Rows of a `datasets.Dataset`, with names in place of class numbers."""
    from datasets import ClassLabel, Dataset, List

    assert isinstance(dataset, Dataset)
    names: dict[str, ClassLabel] = {}
    for column, feature in dataset.features.items():
        inner = feature.feature if isinstance(feature, List) else feature
        if isinstance(inner, ClassLabel):
            names[column] = inner
    rows = []
    for number, record in enumerate(dataset, start=1):
        fault = None
        for column, label in names.items():
            try:
                record[column] = _class_name(record[column], label)
            except ValueError:
                fault = f"{column}: {record[column]} is not the number of one of {label.num_classes} classes"
        rows.append(Row(f"{where} row {number}", record, fault))
    return rows


def _class_name(value: Any, label: ClassLabel) -> Any:
    """The name of a class, or of each class of a list. None for -1, the number of unlabeled rows."""
    if isinstance(value, list):
        return [_class_name(item, label) for item in value]
    return None if value is None or value < 0 else label.int2str(value)
