"""A run's folder on the disk: there whole or not at all, and held by one run at a time."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

import filelock
from accelerate import Accelerator
from safetensors import SafetensorError

from peftlab import checkpoint
from peftlab.part import BadInput

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # what a disk can refuse a write with


@contextlib.contextmanager
def staging(folder: Path, accelerator: Accelerator) -> Iterator[Path]:
    """A folder beside the final one, gone if the run fails: a run folder is there whole or not at all.

    One run at a time holds it; what a run that was killed left in it is thrown away.
    """
    staged = folder.with_name(f"{folder.name}.part")
    if not accelerator.is_main_process:
        yield staged
        return
    old = _old(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder.with_name(f".{folder.name}.lock"), blocking=False)
        lock.acquire()
        if old.exists() and not folder.exists():  # a kill came between the two renames of `publish`
            old.rename(folder)
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
    except filelock.Timeout:
        raise BadInput(f"{folder}: another process is at this run") from None
    except OSError as error:
        raise BadInput(f"--output {folder}: cannot be written: {error.strerror}") from None
    with lock:
        try:
            yield staged
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def publish(staged: Path, folder: Path) -> None:
    """Put the staged folder, all of it on the disk, in the place of the old one."""
    for path in sorted(staged.rglob("*"), reverse=True):
        checkpoint.sync(path)
    checkpoint.sync(staged)
    old = _old(folder)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    staged.rename(folder)
    checkpoint.sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _old(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")


def disk_refusal(error: Exception) -> str | None:
    """What a full or broken disk is to Python, to safetensors and to tokenizers, in words; None if it is not that."""
    if isinstance(error, OSError):
        return error.strerror if error.errno in DISK else None
    if isinstance(error, SafetensorError) or (type(error) is Exception and "(os error " in str(error)):
        return str(error)
    return None
