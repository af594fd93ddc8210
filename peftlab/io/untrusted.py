"""Checks of untrusted files: no pickle is loaded, no code is executed, and sizes in headers are verified."""

from __future__ import annotations

from pathlib import Path

from peftlab.errors import UserError

PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
MAX_HEADER = 2**26
"""Largest header of a safetensors file in bytes."""
MAX_JSON = 2**24
"""Largest JSON file that describes a model, its labels included, in bytes."""


def refuse_pickles(folder: Path) -> None:
    """Raise UserError if `folder` contains a pickle, which a library might load in place of safetensors."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICKLES:
            raise UserError(f"{path}: a pickle can execute code when it is loaded; only safetensors are accepted")


def check_tensors(path: Path) -> None:
    """Raise UserError if the header of a safetensors file is longer than the file or than `MAX_HEADER`."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(MAX_HEADER, path.stat().st_size - 8):
        raise UserError(f"{path}: invalid header length {length} in a file of {path.stat().st_size} bytes")


def read_small(path: Path) -> bytes:
    """Content of a file that should be small. Raises UserError if it exceeds `MAX_JSON` bytes, and OSError."""
    with path.open("rb") as file:
        content = file.read(MAX_JSON + 1)
    if len(content) > MAX_JSON:
        raise UserError(f"{path}: too large: more than {MAX_JSON} bytes")
    return content
