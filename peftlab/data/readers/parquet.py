"""Parquet: typed columns; files written by `datasets` keep their class names."""

from __future__ import annotations

from pathlib import Path

from peftlab.data.examples import Row
from peftlab.data.readers.arrow import dataset_rows
from peftlab.errors import UserError


def read_parquet(path: Path) -> list[Row]:
    """One row per record, with the types of the file. Rows have numbers in place of lines."""
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path).read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or _first_line(error)}") from None
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not parquet: {_first_line(error)}") from None
    import datasets

    return dataset_rows(datasets.Dataset(table), str(path))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
