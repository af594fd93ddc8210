"""Checkpoints that a kill, a full disk or a flipped bit cannot turn into a wrong result.

A checkpoint is written under a temporary name and flushed to the disk file by file, the manifest of its files last, and
then renamed. It is read only if every byte is what the manifest says. safetensors and JSON, no pickle.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from peftlab.component import Settings
from peftlab.errors import UserError
from peftlab.io import untrusted
from peftlab.io.atomic import sync
from peftlab.results.run_result import Environment
from peftlab.training.state import Snapshot

MANIFEST, TENSORS, VALUES = "manifest.json", "state.safetensors", "state.json"
MAX_MANIFEST = 2**20  # bytes
NAME = re.compile(r"step-(\d{8,12})(?:-(\d{1,6}))?")


class Damaged(Exception):
    """The checkpoint is not what was written; the message says in what."""


class Contents(Settings):
    """Contents of a file."""

    sha256: str
    size: int
    """Bytes."""


class Identity(Settings):
    """The run that a state belongs to."""

    recipe_digest: str
    recipe: dict[str, Any]
    """Every default filled in."""
    command: list[str]
    model_fingerprint: str
    data_fingerprint: str
    environment: Environment
    init_from: str | None = None
    """Fingerprint of the adapter that the training started from."""


class Manifest(Settings):
    """Written last. Its file holds a line of JSON and the sha256 of that line."""

    version: Literal[1] = 1
    step: int = Field(ge=0)
    """Optimizer steps done."""
    written: str
    """Time in UTC, ISO 8601."""
    identity: Identity
    files: dict[str, Contents]
    """By name."""


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A valid checkpoint, and why newer ones were skipped."""

    path: Path
    manifest: Manifest
    snapshot: Snapshot
    skipped: tuple[str, ...]


class Checkpoints:
    """The checkpoints of one run, in a folder of their own; one process at a time writes there."""

    def __init__(self, folder: Path, identity: Identity, *, keep_last: int) -> None:
        self.folder = folder
        self.identity = identity
        self.keep_last = keep_last  # older ones are deleted
        self._of_attempt: list[Path] = []  # those that this attempt wrote or resumed from, oldest first

    def save(self, snapshot: Snapshot) -> Path:
        """Write a checkpoint, then delete older ones. Raises OSError; the existing checkpoints are then still there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._free_name(snapshot.step)
        staged = path.with_name(f".{path.name}.part")
        shutil.rmtree(staged, ignore_errors=True)
        try:
            staged.mkdir()
            _write_tensors(snapshot, staged / TENSORS)
            _write(json.dumps(snapshot.values).encode(), staged / VALUES)
            manifest = Manifest(
                step=snapshot.step,
                written=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                identity=self.identity,
                files={name: _contents(staged / name) for name in (TENSORS, VALUES)},
            )
            sync(staged)
            _write(_sealed(manifest), staged / MANIFEST)
            sync(staged)
            staged.rename(path)
        except OSError:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        sync(self.folder)
        self._of_attempt.append(path)
        self._prune()
        return path

    def newest(self) -> LoadedCheckpoint | None:
        """Load the newest valid checkpoint. Raises UserError if it belongs to another run, or none is valid."""
        skipped = []
        for path in names(self.folder):
            try:
                manifest, snapshot = read(path)
            except Damaged as damage:
                skipped.append(f"{path.name}: {damage}")
                continue
            if changes := differences(manifest.identity, self.identity):
                raise UserError(f"--resume: {path} belongs to another run: {'; '.join(changes)}")
            self._of_attempt = [path]
            return LoadedCheckpoint(path, manifest, snapshot, tuple(skipped))
        if skipped:
            raise UserError(
                f"--resume: no checkpoint in {self.folder} is valid ({'; '.join(skipped)}); "
                "without --resume the run starts from scratch"
            )
        return None

    def tidy(self) -> None:
        """Delete what killed attempts left half-written or half-deleted."""
        if self.folder.is_dir():
            for path in self.folder.glob(".*"):
                _delete(path)

    def _free_name(self, step: int) -> Path:
        """A name that is not in use: existing checkpoints stay until the new one is complete."""
        path, attempt = self.folder / f"step-{step:08d}", 1
        while path.exists() or path.is_symlink():
            path = self.folder / f"step-{step:08d}-{attempt}"
            attempt += 1
        return path

    def _prune(self) -> None:
        self._of_attempt = self._of_attempt[-self.keep_last :]
        for path in self.folder.iterdir():
            if path not in self._of_attempt:
                with contextlib.suppress(OSError):  # a checkpoint that cannot be deleted does no harm
                    _delete(path)


def names(folder: Path) -> Iterator[Path]:
    """Paths in `folder` that have the name of a checkpoint, newest first."""
    matches = []
    if folder.is_dir():
        for path in folder.iterdir():
            if match := NAME.fullmatch(path.name):
                matches.append((int(match[1]), int(match[2] or 0), path))
    for _, _, path in sorted(matches, reverse=True):
        yield path


def read(path: Path) -> tuple[Manifest, Snapshot]:
    """Load a checkpoint; every byte is checked before any is used. Raises Damaged."""
    try:
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise Damaged("not a folder")
        manifest = read_manifest(path / MANIFEST)
        names = {entry.name for entry in path.iterdir()}
        if unexpected := sorted(names ^ {MANIFEST, *manifest.files}):
            raise Damaged(f"{unexpected[0]} {'does not belong there' if unexpected[0] in names else 'is missing'}")
        if set(manifest.files) != {TENSORS, VALUES}:
            raise Damaged(f"{MANIFEST} does not list {TENSORS} and {VALUES}")
        if NAME.fullmatch(path.name) is None or int(NAME.fullmatch(path.name)[1]) != manifest.step:  # type: ignore[index]
            raise Damaged(f"it holds step {manifest.step}")
        for name, expected in manifest.files.items():
            _check_regular(path / name, expected.size)
            if _contents(path / name) != expected:
                raise Damaged(f"{name} is not what was written")
        untrusted.check_tensors(path / TENSORS)
        values = json.loads((path / VALUES).read_bytes())
        if not isinstance(values, dict):
            raise Damaged(f"{VALUES} holds no values")
        return manifest, Snapshot(manifest.step, load_file(path / TENSORS), values)
    except OSError as error:
        raise Damaged(f"cannot be read: {error.strerror}") from None
    except (SafetensorError, ValueError, RecursionError) as error:
        raise Damaged(f"cannot be read: {error}") from None


def refuse_edited(folder: Path, identity: Identity) -> None:
    """Raise UserError if the same `peftlab run` command started another run: its recipe has been edited since.

    Not for a command that does several runs, such as a suite: it may leave some of them unfinished.
    """
    if identity.command[1:2] != ["run"] or not folder.parent.is_dir():
        return
    for sibling in sorted(folder.parent.glob("*.checkpoints")):
        for path in names(sibling):
            try:
                then = read_manifest(path / MANIFEST).identity
            except (Damaged, OSError):
                continue
            if _without_options(then.command) == _without_options(identity.command):
                raise UserError(
                    f"--resume: {path} was written by the same command, but {'; '.join(differences(then, identity))}; "
                    "undo the change, or start from scratch without --resume"
                )
            break


def _without_options(command: Sequence[str]) -> list[str]:
    """The words of a command that say what to run."""
    remaining, words = [], iter(command)
    for word in words:
        name, equals, _ = word.partition("=")
        if name in ("--checkpoint-every", "--keep-checkpoints"):
            if not equals:
                next(words, None)
        elif word not in ("--resume", "--force"):
            remaining.append(word)
    return remaining


def differences(then: Identity, now: Identity) -> list[str]:
    """Differences between two runs that make the states of one unusable for the other."""
    changes = []
    if then.recipe_digest != now.recipe_digest:
        one, other = _flat(then.recipe), _flat(now.recipe)
        changed = [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)]
        changes += [f"{key}: {_text(one, key)} there, {_text(other, key)} here" for key in changed[:5]]
        changes += [f"and {len(changed) - 5} more"] if len(changed) > 5 else []
    for what, a, b in (
        ("the base's files", then.model_fingerprint[:12], now.model_fingerprint[:12]),
        ("the data", then.data_fingerprint[:12], now.data_fingerprint[:12]),
        ("the adapter of init_from", (then.init_from or "none")[:12], (now.init_from or "none")[:12]),
        ("processes", then.environment.processes, now.environment.processes),
        ("shards of the model", then.environment.sharded, now.environment.sharded),
        ("DeepSpeed's ZeRO", then.environment.zero, now.environment.zero),
        ("precision", then.environment.precision, now.environment.precision),
        ("device", then.environment.device, now.environment.device),
    ):
        if a != b:
            changes.append(f"{what}: {a} there, {b} here")
    return changes


def remarks(then: Environment, now: Environment) -> list[str]:
    """Differences that do not prevent resuming but may change a last digit."""
    changes = []
    libraries = {name: (then.libraries.get(name), now.libraries.get(name)) for name in then.libraries | now.libraries}
    for what, a, b in (
        ("peftlab's commit", (then.code.commit or "")[:12], (now.code.commit or "")[:12]),
        ("uncommitted changes in peftlab", then.code.modified, now.code.modified),
        ("Python", then.python, now.python),
        *((name, *versions) for name, versions in sorted(libraries.items())),
        ("processor", then.hardware.processor, now.hardware.processor),
        ("threads", then.hardware.threads, now.hardware.threads),
        ("accelerators", ", ".join(then.hardware.accelerators), ", ".join(now.hardware.accelerators)),
    ):
        if a != b:
            changes.append(f"{what}: {a or 'none'} then, {b or 'none'} now")
    return changes


def read_manifest(path: Path) -> Manifest:
    """Read and verify a manifest. Raises Damaged or OSError."""
    size = path.lstat().st_size
    if size > MAX_MANIFEST:
        raise Damaged(f"{MANIFEST} is too long: {size} bytes")
    _check_regular(path, size)
    content = path.read_bytes()
    try:
        manifest = Manifest.model_validate_json(content.partition(b"\n")[0])
    except ValidationError:
        raise Damaged(f"{MANIFEST} cannot be read") from None
    if content != _sealed(manifest):
        raise Damaged(f"{MANIFEST} is not what was written")
    return manifest


def _sealed(manifest: Manifest) -> bytes:
    line = json.dumps(manifest.model_dump(mode="json"), sort_keys=True).encode()
    return line + b"\n" + hashlib.sha256(line).hexdigest().encode() + b"\n"


def _check_regular(path: Path, size: int) -> None:
    facts = path.lstat()
    if not stat.S_ISREG(facts.st_mode):
        raise Damaged(f"{path.name} is a link or no file")
    if facts.st_size != size:
        raise Damaged(f"{path.name} has {facts.st_size} bytes, not {size}")


def _contents(path: Path) -> Contents:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Contents(sha256=digest, size=file.tell())


def _write(content: bytes, path: Path) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _write_tensors(snapshot: Snapshot, path: Path) -> None:
    try:
        save_file(dict(snapshot.tensors), path)
    except SafetensorError as error:  # what a full disk is to that library
        raise OSError(0, str(error)) from None
    sync(path)


def _delete(path: Path) -> None:
    """Delete a file or folder. A folder is renamed first, so that half of it does not count as a damaged checkpoint."""
    if path.is_dir() and not path.is_symlink():
        if not path.name.startswith("."):
            gone = path.with_name(f".{path.name}.gone")
            shutil.rmtree(gone, ignore_errors=True)
            path = path.rename(gone)
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as one level with dotted names.

    >>> _flat({"method": {"kind": "lora", "rank": 4}, "name": "mine"})
    {'method.kind': 'lora', 'method.rank': 4, 'name': 'mine'}
    """
    flattened: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flattened |= _flat(value, f"{prefix}{key}.")
        else:
            flattened[f"{prefix}{key}"] = value
    return flattened


def _text(values: Mapping[str, Any], key: str) -> str:
    text = json.dumps(values[key]) if key in values else "nothing"
    return text if len(text) <= 60 else f"{text[:57]}..."
