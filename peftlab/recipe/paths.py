"""Paths of data in a recipe or suite file, which are relative to the folder of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

KEYS = ("train", "validation", "test", "id")


def resolve_data_paths(values: Any, folder: Path) -> Any:
    """The values of a file in `folder`, with the paths under each key `data` as seen from the working directory.

    A path that does not exist in the folder stays as it is: relative to the working directory, or a Hub id.
    """
    if isinstance(values, list):
        return [resolve_data_paths(value, folder) for value in values]
    if not isinstance(values, dict):
        return values
    return {
        key: _resolved_data(value, folder) if key == "data" else resolve_data_paths(value, folder)
        for key, value in values.items()
    }


def _resolved_data(data: Any, folder: Path) -> Any:
    if isinstance(data, str):
        return _resolved(data, folder)
    if not isinstance(data, dict):
        return data
    return {
        key: _resolved(value, folder) if key in KEYS else resolve_data_paths(value, folder)
        for key, value in data.items()
    }


def _resolved(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {key: _resolved(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item, folder) for item in value]
    if not isinstance(value, str) or not value or value.startswith("~") or Path(value).is_absolute():
        return value
    path = folder / value
    try:
        return str(path) if path.exists() else value
    except (OSError, ValueError):  # too long, or with a NUL character: reported where it is read
        return value
