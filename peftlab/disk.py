"""What a disk promises, and what it says when it cannot."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from safetensors import SafetensorError

REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def refusal(error: Exception) -> str | None:
    """What a full or broken disk is to Python, to safetensors and to tokenizers, in words; None if it is not that."""
    if isinstance(error, OSError):
        return error.strerror if error.errno in REFUSALS else None
    if isinstance(error, SafetensorError) or (type(error) is Exception and "(os error " in str(error)):
        return str(error)
    return None
