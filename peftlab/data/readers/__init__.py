"""File formats. A reader returns rows with their file and line; a row that cannot be read has a fault."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from peftlab.data.examples import Row
from peftlab.data.readers.conll import read_conll
from peftlab.data.readers.delimited import read_csv, read_tsv
from peftlab.data.readers.json_array import read_json
from peftlab.data.readers.jsonl import read_jsonl
from peftlab.data.readers.options import ReadOptions
from peftlab.data.readers.parquet import read_parquet
from peftlab.data.readers.text import read_parallel, read_text

Format = Literal["jsonl", "json", "csv", "tsv", "parquet", "conll", "text"]
READERS: dict[Format, Callable[[Path, ReadOptions], list[Row]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "tsv": read_tsv,
    "parquet": read_parquet,
    "conll": read_conll,
    "text": read_text,
}
ENDINGS: dict[str, Format] = {
    **{".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv"},
    **{".parquet": "parquet", ".conll": "conll", ".iob2": "conll", ".bio": "conll", ".txt": "text"},
}


def ending_format(path: Path) -> Format | None:
    """Format by the ending of a file's name, without .gz; None if it is unknown.

    >>> ending_format(Path("a.csv.gz")), ending_format(Path("a.JSONL")), ending_format(Path("a.xyz"))
    ('csv', 'jsonl', None)
    """
    inner = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return ENDINGS.get(inner.suffix.lower())


__all__ = [
    "ENDINGS",
    "READERS",
    "Format",
    "ReadOptions",
    "ending_format",
    "read_conll",
    "read_csv",
    "read_jsonl",
    "read_parallel",
    "read_parquet",
    "read_text",
    "read_tsv",
]
