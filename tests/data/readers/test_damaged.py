"""Damaged files of every format: rows, or one error line, and no exception of a library."""

import csv
import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from peftlab.data.examples import Row
from peftlab.data.files import Files
from peftlab.data.hub import Hub
from peftlab.errors import UserError

RECORDS = [{"text": f'Zoë {i}, "so"', "label": ("good", "bad")[i % 2], "score": i / 4} for i in range(12)]
TRIES = 150  # damaged copies of each file
SNIPPETS = (
    b"\0",
    b"\xff",
    b'"',
    b"\n",
    b"\r",
    b"\t",
    b"{",
    b"]",
    b"\\ud800",
    b"NaN",
    b"1e999",
    b"\xef\xbb\xbf",
    b"#",
    b"",
)


def table(separator: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(RECORDS[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(RECORDS)
    return text.getvalue().encode()


def parquet_file(**settings: Any) -> bytes:
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(RECORDS), sink, **settings)
    return sink.getvalue().to_pybytes()


def class_labels() -> bytes:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])})
    sink = io.BytesIO()
    datasets.Dataset.from_dict({"text": ["x"] * 9, "label": [0] * 9}, features=features).to_parquet(sink)
    return sink.getvalue()


FILES: dict[str, Callable[[], bytes]] = {
    "a.jsonl": lambda: "".join(json.dumps(record) + "\n" for record in RECORDS).encode(),
    "a.json": lambda: json.dumps(RECORDS, indent=1).encode(),
    "squad.json": lambda: json.dumps(
        {"data": [{"paragraphs": [{"context": "Ada.", "qas": [{"id": i, "question": "?"}]}]} for i in range(9)]}
    ).encode(),
    "a.csv": lambda: table(","),
    "a.tsv": lambda: table("\t"),
    "utf16.csv": lambda: table(",").decode().encode("utf-16"),
    "a.conll": lambda: b"1\tAda\tB-PER\n2\tsings\tO\n\n# id\n1\tUlm\tB-LOC\n" * 9,
    "a.txt": lambda: b"one\ntwo\n\n" * 9,
    "a.parquet": parquet_file,
    "plain.parquet": lambda: parquet_file(compression="none", use_dictionary=False),
    "classes.parquet": class_labels,
}


def damaged(content: bytes, draw: random.Random) -> bytes:
    position = draw.randrange(len(content) + 1)
    match draw.randrange(4):
        case 0:
            return content[:position]
        case 1:
            return content[:position] + draw.choice(SNIPPETS) + content[position:]
        case 2:
            return content[:position] + draw.choice(SNIPPETS) + content[position + draw.randrange(9) :]
        case _:
            flipped = bytearray(content)
            for _ in range(draw.randrange(1, 9)):
                flipped[draw.randrange(len(flipped))] = draw.randrange(256)
            return bytes(flipped)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_gives_rows_or_one_error(name: str, tmp_path: Path) -> None:
    content, draw = FILES[name](), random.Random(name)
    path = tmp_path / name
    outcomes = set()
    for _ in range(TRIES):
        path.write_bytes(damaged(content, draw))
        try:
            rows = Files(train=str(path)).read()[0]["train"]
        except UserError as error:
            outcomes.add("lines" if "\n" in str(error) else "error")
        else:
            outcomes.add("rows")
            assert all(isinstance(row, Row) for row in rows)
    assert outcomes == ({"rows"} if name in ("a.txt", "a.jsonl", "a.conll") else {"error", "rows"})


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 99, b"PAR1PAR1", b"PAR1" + b"\xff" * 40 + b"PAR1", b"\xff\xfe", b"[" * 9999]
)
def test_bytes_that_are_no_data_give_no_traceback(content: bytes, tmp_path: Path) -> None:
    for ending in ("jsonl", "json", "csv", "tsv", "parquet", "conll", "txt", "csv.gz", "jsonl.gz"):
        path = tmp_path / f"a.{ending}"
        path.write_bytes(content)
        with pytest.raises(UserError, match=re.escape(str(path))):
            Files(train=str(path), validation_share=0, test_share=0).load(("x",))


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_a_damaged_file_in_a_folder_is_one_error(ending: str, tmp_path: Path) -> None:
    (tmp_path / f"train.{ending}").write_bytes(b"\x00\xff{" * 99)
    with pytest.raises(UserError, match="not available from the Hub") as caught:
        Hub(id=str(tmp_path)).read()
    assert "\n" not in str(caught.value)
