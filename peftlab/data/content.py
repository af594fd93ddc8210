"""Fingerprints of the user's files, by which a digest names data wherever they are."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path


def files_fingerprint(files: Iterable[tuple[str, Path]]) -> str | None:
    """sha256 of the contents of named files; None if one cannot be read."""
    digest = hashlib.sha256()
    try:
        for name, path in files:
            status = path.stat()
            digest.update(f"{name} {_sha256(path, status.st_size, status.st_mtime_ns)}\n".encode())
    except (OSError, ValueError):
        return None
    return digest.hexdigest()


def folder_fingerprint(folder: Path) -> str | None:
    """sha256 of the names and contents of a folder's files; None if one cannot be read."""
    try:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
    except OSError:
        return None
    names = [path.relative_to(folder).as_posix() for path in paths]
    return files_fingerprint(
        (name, path) for name, path in zip(names, paths, strict=True) if not name.startswith(".") and "/." not in name
    )


@functools.lru_cache(maxsize=1024)
def _sha256(path: Path, size: int, modified: int) -> str:
    """Cached for a file of this size and time of modification."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
