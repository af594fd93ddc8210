"""What a disk promises, and what it says when it cannot."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

from safetensors import SafetensorError

from peftlab.errors import UserError

REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_writable(folder: Path) -> None:
    """Before there is anything to write into it, which may take hours. Raises UserError."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise UserError(f"{folder}: cannot be written: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: cannot be written: permission denied")


def atomic_write(path: Path, content: bytes) -> None:
    """Replace a file by one with this content, or leave it as it is."""
    staged = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with staged.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def storage_error(error: Exception) -> str | None:
    """What a full or broken disk is to Python, to safetensors and to tokenizers, in words; None if it is not that."""
    if isinstance(error, OSError):
        return error.strerror if error.errno in REFUSALS else None
    if isinstance(error, SafetensorError) or (type(error) is Exception and "(os error " in str(error)):
        return str(error)
    return None
