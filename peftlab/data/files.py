"""One's own files: JSON lines, a JSON array, CSV, TSV, Parquet, CoNLL columns or plain text."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from peftlab.component import ExpandedPath
from peftlab.data.data import Data
from peftlab.data.examples import Row
from peftlab.data.readers import ENDINGS, READERS, Format, ending_format
from peftlab.errors import UserError


class Files(Data):
    """A file a split, its format told by the ending, .gz or not; paths are relative to the working directory."""

    kind: Literal["files"] = "files"
    train: ExpandedPath
    validation: ExpandedPath | None = None
    test: ExpandedPath | None = None
    format: Format | None = None  # where the ending does not tell it, e.g. conll for a .txt

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
    """The rows of a file. Raises UserError if its format is not known, or it cannot be read at all."""
    known = format or ending_format(path)
    if known is None:
        raise UserError(
            f"data: {path} ends in {path.suffix!r}; known are {', '.join(ENDINGS)}; data.format says another's format"
        )
    return READERS[known](path)
