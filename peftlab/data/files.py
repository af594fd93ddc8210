"""Your own files: JSON lines, a JSON array, CSV, TSV, Parquet, CoNLL columns or plain text."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from peftlab.component import ExpandedPath
from peftlab.data.data import Data
from peftlab.data.examples import Row
from peftlab.data.readers import ENDINGS, READERS, Format, ending_format
from peftlab.errors import UserError


class Files(Data):
    """Your own files, one per split: .jsonl, .json, .csv, .tsv, .parquet, .conll or .txt, also gzipped.

    Paths are relative to the working directory; `~` is the home folder.
    """

    kind: Literal["files"] = "files"
    train: ExpandedPath
    """File of the training rows, e.g. data/train.jsonl."""
    validation: ExpandedPath | None = None
    """File of the validation rows, e.g. data/dev.jsonl. Null: `validation_share` of train."""
    test: ExpandedPath | None = None
    """File of the test rows, e.g. data/test.jsonl. Null: `test_share` of train."""
    format: Format | None = None
    """Format of the files. Null: by the ending of each file's name; e.g. conll for a .txt file of columns."""

    @property
    def local(self) -> bool:
        return True

    def missing_files(self) -> list[str]:
        return [path for path in self._paths().values() if not Path(path).exists()]

    def read(self) -> tuple[dict[str, list[Row]], str]:
        return {split: read_file(Path(path), self.format) for split, path in self._paths().items()}, self.train

    def _paths(self) -> dict[str, str]:
        paths = {"train": self.train, "validation": self.validation, "test": self.test}
        return {split: path for split, path in paths.items() if path is not None}


def read_file(path: Path, format: Format | None = None) -> list[Row]:
    """The rows of a file. Raises UserError if its format is unknown, or if the file cannot be read at all."""
    format = format or ending_format(path)
    if format is None:
        raise UserError(
            f"data: {path} ends in {path.suffix!r}; known are {', '.join(ENDINGS)}; for others set data.format"
        )
    return READERS[format](path)
