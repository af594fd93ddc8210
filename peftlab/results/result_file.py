"""result.json in the folder of a run, and the names of the folders next to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from peftlab.errors import UserError, first_error
from peftlab.io.atomic import atomic_write
from peftlab.results.run_result import VERSION, RunResult

FILE = "result.json"


def write_result(result: RunResult, folder: Path) -> Path:
    """Write result.json atomically and return its path."""
    path = folder / FILE
    atomic_write(path, (result.model_dump_json(indent=2) + "\n").encode())
    return path


def is_finished(folder: Path) -> bool:
    """True if `folder` holds the result of a run. Raises UserError if the folder cannot be read."""
    try:
        return (folder / FILE).exists()
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror}") from None


def read_result(path: Path) -> RunResult:
    """Read a result file, or the one in a folder. Raises UserError with one line."""
    path = path / FILE if path.is_dir() else path
    try:
        return RunResult.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise UserError(f"{path}: not a result of version {VERSION} or older: {first_error(error)}") from None


def data_of(run: Path) -> dict[str, Any]:
    """Settings of the data that a run read; empty for a folder without a readable result."""
    try:
        return dict(read_result(run).recipe["data"])
    except UserError:
        return {}


def result_folder(output: Path, name: str, digest: str) -> Path:
    """Folder of a run's files, a function of its recipe."""
    return output / name / digest


def checkpoint_folder(folder: Path) -> Path:
    """Folder of the checkpoints of an unfinished run. It is next to the run's folder, which appears when complete."""
    return folder.with_name(f"{folder.name}.checkpoints")


def tracking_folder(folder: Path) -> Path:
    """Folder of the files that trackers such as TensorBoard write."""
    return folder.with_name(f"{folder.name}.tracking")
