"""One's own files: JSON lines, or CoNLL columns."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from peftlab.data.data import Data
from peftlab.data.readers import READERS
from peftlab.examples import Row
from peftlab.part import BadInput


class Files(Data):
    """A file a split, its format told by the ending; paths are relative to the working directory."""

    kind: Literal["files"] = "files"
    train: str
    validation: str | None = None
    test: str | None = None

    @property
    def local(self) -> bool:
        return True

    def read(self) -> tuple[dict[str, list[Row]], str]:
        paths = {"train": self.train, "validation": self.validation, "test": self.test}
        rows = {split: _read(Path(path)) for split, path in paths.items() if path is not None}
        return rows, self.train


def _read(path: Path) -> list[Row]:
    reader = READERS.get(path.suffix)
    if reader is None:
        raise BadInput(f"data: {path} ends in {path.suffix!r}; known are {', '.join(READERS)}")
    return reader(path)
