"""Durable writes: atomic replacement of files, fsync, and recognition of full or failing disks."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

from safetensors import SafetensorError

from peftlab.errors import UserError

STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def sync(path: Path) -> None:
    """Flush a file, or the directory entries of a folder, to the disk (fsync)."""
    if os.name == "posix":  # Windows cannot open a folder
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256(path: Path) -> str:
    """SHA-256 of a file's content in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_writable(folder: Path) -> None:
    """Raise UserError if `folder` cannot be created or written to. Called before hours of work, not after."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"{folder}: cannot be written: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: cannot be written: permission denied")


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file atomically: it has either the new content or, after a failure, the old one."""
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
    """Reason if the error means a full or failing disk, else None. Python, safetensors and tokenizers differ in it."""
    if isinstance(error, OSError):
        return error.strerror if error.errno in STORAGE_ERRORS else None
    if isinstance(error, SafetensorError) or (type(error) is Exception and "(os error " in str(error)):
        return str(error)
    return None
