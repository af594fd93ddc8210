"""Your own files: JSON lines, a JSON array, CSV, TSV, Parquet, CoNLL columns or plain text."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from peftlab.component import ExpandedPath
from peftlab.data.content import files_fingerprint
from peftlab.data.data import Data
from peftlab.data.examples import Row
from peftlab.data.readers import ENDINGS, READERS, Format, ReadOptions, ending_format, read_parallel
from peftlab.data.readers.lines import check_encoding
from peftlab.errors import UserError

Position = Annotated[int, Field(ge=-1000, le=1000)]
Parallel = Annotated[dict[str, ExpandedPath], Field(min_length=2)]
Several = Annotated[tuple[ExpandedPath, ...], Field(min_length=1, strict=False)]
Paths = ExpandedPath | Several | Parallel
"""One file, several ones, or parallel text files by column."""
OPTIONS: Mapping[str, Collection[Format]] = {
    "encoding": ("jsonl", "json", "csv", "tsv", "conll", "text"),
    "header": ("csv", "tsv"),
    "names": ("csv", "tsv"),
    "conll_columns": ["conll"],
}
"""The formats that each option is for."""


def _is_none(value: object) -> bool:
    return value is None


class Files(Data):
    """Your own files, one per split: .jsonl, .json, .csv, .tsv, .parquet, .conll or .txt, also gzipped.

    Two text files whose lines belong together are a mapping, e.g. train: {source: train.en, target: train.de}. Paths
    are relative to the file that names them, or else to the working directory; `~` is the home folder.
    """

    kind: Literal["files"] = "files"
    named_by_content: ClassVar[tuple[str, ...]] = ("train", "validation", "test")
    train: Paths
    """File of the training rows, e.g. data/train.jsonl; a list of files, whose rows are read in this order; or parallel
    text files by field."""
    validation: Paths | None = None
    """File of the validation rows, e.g. data/dev.jsonl. Null: `validation_share` of train."""
    test: Paths | None = None
    """File of the test rows, e.g. data/test.jsonl. Null: `test_share` of train."""
    format: Format | None = None
    """Format of the files. Null: by the ending of each file's name; e.g. conll for a .txt file of columns."""
    # The following are left out of the digest if they are not set.
    encoding: str | None = Field(None, exclude_if=_is_none, examples=["windows-1252"])
    """Encoding of text files, e.g. windows-1252 or utf-16. Null: UTF-8, or by the byte order mark."""
    header: bool | None = Field(None, exclude_if=_is_none)
    """False if the first line of a CSV or TSV file is data; the columns are then named 1, 2, ..., or by `names`. Null:
    true, or false if there are `names`."""
    names: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(), strict=False, exclude_if=operator.not_, examples=[["label", "text"]]
    )
    """Names of the columns of a CSV or TSV file without a header; with header: true, in place of those of the file."""
    conll_columns: dict[str, Position] | None = Field(
        None, min_length=1, exclude_if=_is_none, examples=[{"tokens": 2, "labels": 3}]
    )
    """Columns of a CoNLL file by position, from 1, or from -1 at the end, e.g. {tokens: 2, labels: 3}. Null: recognized
    by their content, or refused if that is ambiguous."""

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, name: str | None) -> str | None:
        return name if name is None else check_encoding(name) and name

    @model_validator(mode="after")
    def _options_are_for_the_formats(self) -> Self:
        formats = [self._format(Path(path)) for path in self._all_paths()]
        for option, of in OPTIONS.items():
            if getattr(self, option) not in (None, ()) and not any(name is None or name in of for name in formats):
                raise ValueError(f"{option} is for {', '.join(of)} and not for {formats[0]}; leave it out")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"names: {', '.join(self.names)} has a name twice")
        if 0 in (self.conll_columns or {}).values():
            raise ValueError("conll_columns: the first column is 1")
        return self

    @property
    def local(self) -> bool:
        return True

    def content_fingerprints(self) -> dict[str, str]:
        found = {}
        for split, paths in self._paths().items():
            names = paths if isinstance(paths, dict) else [""] * len(_flat(paths))
            files = [
                (f"{name} {self._format(Path(path))}", Path(path))
                for name, path in zip(names, _flat(paths), strict=True)
            ]
            found[split] = files_fingerprint(files)
        return {split: value for split, value in found.items() if value} if all(found.values()) else {}

    def missing_files(self) -> list[str]:
        return [path for path in self._all_paths() if not Path(path).exists()]

    def missing_column_hint(self) -> str:
        if self.names or self.header is not None or self._format(Path(self._all_paths()[0])) not in OPTIONS["header"]:
            return ""
        return "; if the first line of the file is data, set data.names: [NAME, ...] with a name for each column"

    def read(self) -> tuple[dict[str, list[Row]], str]:
        options = ReadOptions(
            encoding=self.encoding, header=self.header, names=self.names, conll_columns=self.conll_columns
        )
        rows = {}
        for split, paths in self._paths().items():
            if isinstance(paths, dict):
                rows[split] = read_parallel({column: Path(path) for column, path in paths.items()}, options)
            else:
                rows[split] = [row for path in _flat(paths) for row in read_file(Path(path), self.format, options)]
        return rows, ", ".join(_flat(self.train))

    def _paths(self) -> dict[str, Paths]:
        paths = {"train": self.train, "validation": self.validation, "test": self.test}
        return {split: path for split, path in paths.items() if path is not None}

    def _all_paths(self) -> list[str]:
        return [path for paths in self._paths().values() for path in _flat(paths)]

    def _format(self, path: Path) -> Format | None:
        return self.format or ("text" if isinstance(self.train, dict) else ending_format(path))


def _flat(paths: Paths) -> list[str]:
    if isinstance(paths, str):
        return [paths]
    return list(paths.values() if isinstance(paths, dict) else paths)


def read_file(path: Path, format: Format | None = None, options: ReadOptions | None = None) -> list[Row]:
    """The rows of a file. Raises UserError if its format is unknown, or if the file cannot be read at all."""
    format = format or ending_format(path)
    if format is None:
        raise UserError(
            f"data: {path} ends in {path.suffix!r}; known are {', '.join(ENDINGS)}; for others set data.format"
        )
    return READERS[format](path, options or ReadOptions())
