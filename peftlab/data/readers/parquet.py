"""Parquet: typed columns; files written by `datasets` keep their class names."""

from __future__ import annotations

from pathlib import Path

from peftlab.data.examples import Row
from peftlab.data.readers.arrow import LIBRARY_ERRORS, first_line, table_rows
from peftlab.data.readers.options import DEFAULT, ReadOptions
from peftlab.errors import UserError


def read_parquet(path: Path, options: ReadOptions = DEFAULT) -> list[Row]:
    """One row per record, with the types of the file. Rows have numbers in place of lines."""
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path).read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or first_line(error)}") from None
    except (pyarrow.ArrowException, *LIBRARY_ERRORS) as error:
        raise UserError(f"{path}: not parquet: {first_line(error)}") from None
    return table_rows(table, str(path))
