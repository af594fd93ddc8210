"""The folder of a run on the disk: complete or absent, and locked by one run at a time."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from peftlab.errors import UserError
from peftlab.io.atomic import sync
from peftlab.results.result_file import checkpoint_folder

if TYPE_CHECKING:
    from accelerate import Accelerator


@contextlib.contextmanager
def staging(folder: Path, accelerator: Accelerator) -> Iterator[Path]:
    """A temporary folder next to the final one, deleted if the run fails: a run folder is complete or absent.

    It is locked by one run at a time; what a killed run left in it is deleted. Raises UserError.
    """
    staged = folder.with_name(f"{folder.name}.part")
    if not accelerator.is_main_process:
        yield staged
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder.with_name(f".{folder.name}.lock"), blocking=False)
        lock.acquire()
        if not folder.exists():  # a run was killed in `publish`, before the rename of the new folder
            for moved, original in ((_old(folder), folder), (_spent(folder), checkpoint_folder(folder))):
                if moved.exists():
                    moved.rename(original)
        sweep(folder)
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
    except filelock.Timeout:
        raise UserError(f"{folder}: another process is doing this run") from None
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be written: {error.strerror}") from None
    with lock:
        try:
            yield staged
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def publish(staged: Path, folder: Path) -> None:
    """Flush the staged folder to the disk and replace the old folder and its checkpoints by it.

    One rename decides: before it, the old folder can be restored and the checkpoints resumed; after it, `sweep` deletes
    them.
    """
    for path in sorted(staged.rglob("*"), reverse=True):
        sync(path)
    sync(staged)
    sweep(folder)
    checkpoints = checkpoint_folder(folder)
    if folder.exists():
        folder.rename(_old(folder))
    if checkpoints.exists():
        checkpoints.rename(_spent(folder))
    staged.rename(folder)
    sync(folder.parent)
    sweep(folder)


def sweep(folder: Path) -> None:
    """Delete the remains of a finished run that was killed before it could delete them."""
    shutil.rmtree(_old(folder), ignore_errors=True)
    shutil.rmtree(_spent(folder), ignore_errors=True)


def _old(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")


def _spent(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.spent")
