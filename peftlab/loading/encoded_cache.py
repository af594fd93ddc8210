"""Cache of encoded examples on the disk. An entry is complete and unchanged, or it is not used."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from peftlab.data.examples import Encoded, Example, Row
from peftlab.io.atomic import atomic_write
from peftlab.sources import assets

MAX_BYTES = 2 * 2**30  # of all entries
FEATURE, LENGTHS = "feature.", "lengths."
Tensors = dict[str, np.ndarray]


def folder() -> Path:
    """Folder of the entries, one file each. They may be deleted at any time."""
    return assets.cache_folder() / "encoded"


def load(key: str, rows: Sequence[Row]) -> Encoded | None:
    """Load what `store` wrote under this key for these rows; None without an entry, or if it is damaged."""
    try:
        with safe_open(_path(key), framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            metadata = file.metadata() or {}
    except (OSError, SafetensorError):
        return None
    if metadata.get("sha256") != _digest(tensors, metadata.get("counts", "")):
        return None
    with contextlib.suppress(OSError):
        os.utime(_path(key))  # marks it as used
    return _unpack(tensors, json.loads(metadata["counts"]), rows)


def store(key: str, rows: Sequence[Row], encoded: Encoded) -> None:
    """Write an entry, if its features can be stored. An error of the disk is ignored: the cache is optional."""
    tensors = _pack(rows, encoded)
    if tensors is None or _unpack(tensors, encoded.counts, rows) != encoded:
        return
    counts = json.dumps(encoded.counts)
    content = save(tensors, metadata={"counts": counts, "sha256": _digest(tensors, counts)})
    path = _path(key)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content)
        _prune()


def _prune() -> None:
    """Delete the least recently used entries if all together are too large."""
    entries = sorted(((path, path.stat()) for path in folder().glob("*.safetensors")), key=lambda e: -e[1].st_mtime_ns)
    total = 0
    for path, stat in entries:
        total += stat.st_size
        if total > MAX_BYTES:
            path.unlink(missing_ok=True)


def _path(key: str) -> Path:
    return folder() / f"{key}.safetensors"


def _pack(rows: Sequence[Row], encoded: Encoded) -> Tensors | None:
    """Each feature as one flat array and the lengths of its sequences; of each example the position of its row."""
    positions = {id(row): position for position, row in enumerate(rows)}
    examples = encoded.examples
    names = list(examples[0].features) if examples else []
    if [field.name for field in dataclasses.fields(Example)] != ["features", "row"] or not all(
        id(example.row) in positions and list(example.features) == names for example in examples
    ):
        return None
    tensors = {"rows": np.array([positions[id(example.row)] for example in examples], dtype=np.int64)}
    for name in names:
        sequences = [example.features[name] for example in examples]
        if not all(type(value) is int and abs(value) < 2**31 for sequence in sequences for value in sequence):
            return None
        tensors[LENGTHS + name] = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        tensors[FEATURE + name] = np.array([value for sequence in sequences for value in sequence], dtype=np.int32)
    return tensors


def _unpack(tensors: Tensors, counts: dict[str, int], rows: Sequence[Row]) -> Encoded:
    features: dict[str, list[list[int]]] = {}
    for name in (key.removeprefix(FEATURE) for key in tensors if key.startswith(FEATURE)):
        flat, ends = tensors[FEATURE + name].tolist(), np.cumsum(tensors[LENGTHS + name]).tolist()
        features[name] = [flat[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    names = list(features)
    return Encoded(
        [
            Example(dict(zip(names, values, strict=True)), rows[position])
            for position, values in zip(tensors["rows"].tolist(), zip(*features.values(), strict=True), strict=True)
        ],
        counts,
    )


def _digest(tensors: Tensors, counts: str) -> str:
    digest = hashlib.sha256(counts.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}\n".encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()
