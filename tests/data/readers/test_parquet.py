"""Parquet files: types and class names."""

from pathlib import Path

import datasets
import pyarrow
from pyarrow import parquet

from peftlab.data.examples import Unreadable
from tests.data.test_readers import read


def test_parquet_keeps_types_and_class_names(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a", "b"], "score": [0.5, None], "words": [["x"], []]}), path)
    assert [dict(row.fields) for row in read(path)] == [
        {"text": "a", "score": 0.5, "words": ["x"]},
        {"text": "b", "score": None, "words": []},
    ]
    assert read(path)[1].where == f"{path} row 2"
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    datasets.Dataset.from_dict({"text": ["a"], "label": [1]}, features=features).to_parquet(path)
    assert read(path)[0].fields == {"text": "a", "label": "pos"}


def test_an_unknown_class_number_is_a_fault_and_minus_one_means_unlabeled(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    features = datasets.Features({"label": datasets.ClassLabel(names=["neg", "pos"])})
    table = datasets.Dataset.from_dict({"label": [0, 0, 0]}, features=features).data.table
    parquet.write_table(table.set_column(0, table.schema.field(0), pyarrow.array([1, -1, 7])), path)
    assert [row.fields["label"] for row in read(path)[:2]] == ["pos", None]
    assert read(path)[2].fields["label"] == Unreadable("7 is not the number of one of 2 classes")
