"""Checkpoints that a kill, a full disk or a flipped bit cannot turn into a wrong result.

One is written beside its place, flushed to the disk file by file, the manifest of its files last, and only then given
its name. It is read if every byte is what the manifest says. safetensors and JSON, no pickle.
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
LARGEST_MANIFEST = 2**20  # bytes
NAME = re.compile(r"step-(\d{8,12})(?:-(\d{1,6}))?")


class Damaged(Exception):
    """A checkpoint that is not what was written, in words."""


class Contents(Settings):
    """Of a file."""

    sha256: str
    size: int


class Identity(Settings):
    """What a state belongs to."""

    recipe_digest: str
    recipe: dict[str, Any]  # resolved
    command: list[str]
    model_fingerprint: str
    data_fingerprint: str
    environment: Environment


class Manifest(Settings):
    """Written last. In its file a line of JSON, and the sha256 of that line."""

    version: Literal[1] = 1
    step: int = Field(ge=0)
    written: str  # UTC, ISO 8601
    identity: Identity
    files: dict[str, Contents]


@dataclass(frozen=True)
class Found:
    """A checkpoint that can be used, and why newer ones cannot."""

    path: Path
    manifest: Manifest
    snapshot: Snapshot
    passed_over: tuple[str, ...]


class Checkpoints:
    """The checkpoints of one run, in a folder of their own; one process at a time writes there."""

    def __init__(self, folder: Path, identity: Identity, *, kept: int) -> None:
        self.folder = folder
        self.identity = identity
        self.kept = kept  # how many of the newest ones stay
        self._mine: list[Path] = []  # those that this attempt wrote or went on from, oldest first

    def save(self, snapshot: Snapshot) -> Path:
        """Write a checkpoint, then delete what is no longer wanted. Raises OSError; what was there is there still."""
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
        self._mine.append(path)
        self._prune()
        return path

    def newest(self) -> Found | None:
        """The newest checkpoint that is whole. Raises UserError if it is of another run, and says in what."""
        passed_over = []
        for path in names(self.folder):
            try:
                manifest, snapshot = read(path)
            except Damaged as damage:
                passed_over.append(f"{path.name}: {damage}")
                continue
            if other := differences(manifest.identity, self.identity):
                raise UserError(f"--resume: {path} is of another run: {'; '.join(other)}")
            self._mine = [path]
            return Found(path, manifest, snapshot, tuple(passed_over))
        if passed_over:
            raise UserError(
                f"--resume: no checkpoint in {self.folder} can be used ({'; '.join(passed_over)}); "
                "without --resume it starts anew"
            )
        return None

    def tidy(self) -> None:
        """Delete what killed attempts left half-written or half-deleted."""
        if self.folder.is_dir():
            for path in self.folder.glob(".*"):
                _delete(path)

    def _free_name(self, step: int) -> Path:
        """Never the name of one that is there, valid or not: until the new one is whole, nothing is touched."""
        path, attempt = self.folder / f"step-{step:08d}", 1
        while path.exists() or path.is_symlink():
            path = self.folder / f"step-{step:08d}-{attempt}"
            attempt += 1
        return path

    def _prune(self) -> None:
        self._mine = self._mine[-self.kept :]
        for path in self.folder.iterdir():
            if path not in self._mine:
                with contextlib.suppress(OSError):  # what cannot be deleted does no harm
                    _delete(path)


def names(folder: Path) -> Iterator[Path]:
    """What is called a checkpoint in `folder`, newest first."""
    found = []
    if folder.is_dir():
        for path in folder.iterdir():
            if match := NAME.fullmatch(path.name):
                found.append((int(match[1]), int(match[2] or 0), path))
    for _, _, path in sorted(found, reverse=True):
        yield path


def read(path: Path) -> tuple[Manifest, Snapshot]:
    """A checkpoint, every byte checked before any is used. Raises Damaged."""
    try:
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise Damaged("not a folder")
        manifest = read_manifest(path / MANIFEST)
        here = {entry.name for entry in path.iterdir()}
        if strange := sorted(here ^ {MANIFEST, *manifest.files}):
            raise Damaged(f"{strange[0]} {'does not belong there' if strange[0] in here else 'is missing'}")
        if set(manifest.files) != {TENSORS, VALUES}:
            raise Damaged(f"{MANIFEST} does not list {TENSORS} and {VALUES}")
        if NAME.fullmatch(path.name) is None or int(NAME.fullmatch(path.name)[1]) != manifest.step:  # type: ignore[index]
            raise Damaged(f"it holds step {manifest.step}")
        for name, wanted in manifest.files.items():
            _check_regular(path / name, wanted.size)
            if _contents(path / name) != wanted:
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
    """Raise UserError if the same `peftlab run` has begun a run that is not this one: its recipe has been edited since.

    A command that does several runs (a suite) may leave some of them unfinished; this is none of its edits.
    """
    if identity.command[1:2] != ["run"] or not folder.parent.is_dir():
        return
    for beside in sorted(folder.parent.glob("*.checkpoints")):
        for path in names(beside):
            try:
                then = read_manifest(path / MANIFEST).identity
            except (Damaged, OSError):
                continue
            if _without_options(then.command) == _without_options(identity.command):
                raise UserError(
                    f"--resume: {path} was begun by the same command, but {'; '.join(differences(then, identity))}; "
                    "undo the change, or start anew without --resume"
                )
            break


def _without_options(command: Sequence[str]) -> list[str]:
    """The words of a command that say what to run."""
    left, words = [], iter(command)
    for word in words:
        name, equals, _ = word.partition("=")
        if name in ("--checkpoint-every", "--keep-checkpoints"):
            if not equals:
                next(words, None)
        elif word not in ("--resume", "--force"):
            left.append(word)
    return left


def differences(then: Identity, now: Identity) -> list[str]:
    """In what two runs are not the same one, so that a state of one is none of the other's."""
    found = []
    if then.recipe_digest != now.recipe_digest:
        one, other = _flat(then.recipe), _flat(now.recipe)
        changed = [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)]
        found += [f"{key}: {_shown(one, key)} there, {_shown(other, key)} here" for key in changed[:5]]
        found += [f"and {len(changed) - 5} more"] if len(changed) > 5 else []
    for what, a, b in (
        ("the base's files", then.model_fingerprint[:12], now.model_fingerprint[:12]),
        ("the data", then.data_fingerprint[:12], now.data_fingerprint[:12]),
        ("processes", then.environment.processes, now.environment.processes),
        ("shares of the model", then.environment.sharded, now.environment.sharded),
        ("DeepSpeed's ZeRO", then.environment.zero, now.environment.zero),
        ("precision", then.environment.precision, now.environment.precision),
        ("device", then.environment.device, now.environment.device),
    ):
        if a != b:
            found.append(f"{what}: {a} there, {b} here")
    return found


def remarks(then: Environment, now: Environment) -> list[str]:
    """What else has changed, and may change a last digit."""
    found = []
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
            found.append(f"{what}: {a or 'none'} then, {b or 'none'} now")
    return found


def read_manifest(path: Path) -> Manifest:
    """Raises Damaged or OSError."""
    size = path.lstat().st_size
    if size > LARGEST_MANIFEST:
        raise Damaged(f"{MANIFEST} is absurdly long: {size} bytes")
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
    """First out of sight, so that a half-deleted checkpoint is not taken for a damaged one."""
    if path.is_dir() and not path.is_symlink():
        if not path.name.startswith("."):
            gone = path.with_name(f".{path.name}.gone")
            shutil.rmtree(gone, ignore_errors=True)
            path = path.rename(gone)
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """
    >>> _flat({"method": {"kind": "lora", "rank": 4}, "name": "mine"})
    {'method.kind': 'lora', 'method.rank': 4, 'name': 'mine'}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _shown(values: Mapping[str, Any], key: str) -> str:
    text = json.dumps(values[key]) if key in values else "nothing"
    return text if len(text) <= 60 else f"{text[:57]}..."
