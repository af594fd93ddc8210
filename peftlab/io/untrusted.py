"""Files of strangers: no pickle is read, nothing is executed, and no header is believed that is absurdly long."""

from __future__ import annotations

from pathlib import Path

from peftlab.errors import UserError

PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
LARGEST_HEADER = 2**26  # bytes of a safetensors file's own list of its tensors
LARGEST_CARD = 2**24  # bytes of a JSON file that describes a model; labels are in it


def refuse_pickles(folder: Path) -> None:
    """Raise UserError if a library might find a pickle in `folder`, where it should find safetensors."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICKLES:
            raise UserError(f"{path}: a pickle can execute anything when it is read; only safetensors are")


def check_tensors(path: Path) -> None:
    """Raise UserError if a safetensors file's header cannot be what it claims to be."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(LARGEST_HEADER, path.stat().st_size - 8):
        raise UserError(f"{path}: claims a header of {length} bytes, in a file of {path.stat().st_size}")


def read_small(path: Path) -> bytes:
    """The whole of a file that has no reason to be large. Raises UserError or OSError."""
    with path.open("rb") as file:
        content = file.read(LARGEST_CARD + 1)
    if len(content) > LARGEST_CARD:
        raise UserError(f"{path}: absurdly long: more than {LARGEST_CARD} bytes")
    return content
