"""A run's folder on the disk: there whole or not at all, and held by one run at a time."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from peftlab.errors import UserError
from peftlab.io.atomic import sync
from peftlab.results.run_result import checkpoint_folder

if TYPE_CHECKING:
    from accelerate import Accelerator


@contextlib.contextmanager
def staging(folder: Path, accelerator: Accelerator) -> Iterator[Path]:
    """A folder beside the final one, gone if the run fails: a run folder is there whole or not at all.

    One run at a time holds it; what a run that was killed left in it is thrown away.
    """
    staged = folder.with_name(f"{folder.name}.part")
    if not accelerator.is_main_process:
        yield staged
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder.with_name(f".{folder.name}.lock"), blocking=False)
        lock.acquire()
        if not folder.exists():  # a kill came in `publish`, before the new folder had its name
            for moved, place in ((_old(folder), folder), (_spent(folder), checkpoint_folder(folder))):
                if moved.exists():
                    moved.rename(place)
        sweep(folder)
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
    except filelock.Timeout:
        raise UserError(f"{folder}: another process is at this run") from None
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be written: {error.strerror}") from None
    with lock:
        try:
            yield staged
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def publish(staged: Path, folder: Path) -> None:
    """Put the staged folder, all of it on the disk, in the place of the old one and of its checkpoints.

    One rename decides: before it, what was there can be put back and the checkpoints gone on from; after it, they are
    what `sweep` deletes.
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
    """Delete what a run that is finished was killed before it could delete."""
    shutil.rmtree(_old(folder), ignore_errors=True)
    shutil.rmtree(_spent(folder), ignore_errors=True)


def _old(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")


def _spent(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.spent")
