"""Base model of a recipe, and where its files come from: a local folder, a registry package or the Hub."""

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
from peftlab.models import configs, remote_code
from peftlab.sources import assets, hub

FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""Patterns of the files of a base model. Pickles are never loaded."""
CODE = "*.py"
"""Pattern of the files of a base model with custom code."""


ADAPTER_FILES = ("adapter_config.json", "peftlab.json")
"""Files that PEFT and peftlab write next to an adapter."""


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """Files of a base model on this machine."""

    folder: Path
    source: str
    """Origin of the files, for messages and records."""
    fingerprint: str
    """SHA-256 of the names and contents of the files."""
    code_revision: str | None = None
    """Revision of the custom code that may run, or None."""

    @property
    def trusted(self) -> bool:
        """True if the base model's custom code may run."""
        return self.code_revision is not None


@dataclass(frozen=True)
class KnownConfig:
    """Values of a base model's config.json, as far as they are known."""

    values: Mapping[str, Any]
    """Keys and values of transformers. A missing key has the library's default."""
    source: str
    """Origin of the values, for messages."""
    disagreement: str | None = None
    """Difference between the stored config of this base model and its config.json, if there is one."""


class Model(Settings):
    """Base model: a Hub id or a folder in transformers' layout."""

    id: ExpandedPath = Field(min_length=1, pattern=r"^[\w./~-]+$")
    """Hub id, e.g. google-bert/bert-base-cased, or path of a folder with config.json, weights and tokenizer."""
    revision: str | None = Field(None, examples=["main"])
    """Commit, tag or branch on the Hub; the default branch if not given."""
    architecture: str | None = None
    """transformers' model_type, e.g. bert. Needed only for a base model that is neither local nor well known."""

    @model_validator(mode="after")
    def _check_architecture(self) -> Model:
        _refuse_adapter(Path(self.id))
        actual = self._local_architecture()
        if self.architecture is not None and actual is not None and actual != self.architecture:
            raise ValueError(f"architecture: {self.id} is a {actual}, not a {self.architecture}; remove this key")
        return self

    @property
    def local(self) -> bool:
        """True if the base model is a local folder, whose content may change under the same name."""
        return Path(self.id).is_dir()

    def require_folder(self) -> None:
        """Raise UserError if `id` can only be a folder, and there is none."""
        if not self.local and (self.id.startswith((".", "/", "~")) or self.id.count("/") > 1):
            if self.revision is None and assets.find(self.id) is not None:
                return
            raise UserError(
                f"model: {self.id}: no such folder (looked for {Path(self.id).absolute()}); give a folder with "
                "config.json, weights and tokenizer, or a Hub id, e.g. google-bert/bert-base-cased"
            )

    def known_architecture(self) -> str | None:
        """transformers' `model_type` if it can be determined offline, else None."""
        return self._local_architecture() or self.architecture

    def known_config(self) -> KnownConfig | None:
        """Config of the base model if it can be determined offline: a local config.json or the stored config."""
        stored = configs.stored_configs().get(self.id)
        path = self._local_config()
        if path is not None:
            config = _read(path)
            return KnownConfig(config, str(path), configs.disagreement(stored, config) if stored else None)
        return KnownConfig(stored, f"the stored config of {self.id}") if stored is not None else None

    def config(self) -> KnownConfig:
        """Config of the base model, without its weights. Raises UserError if it cannot be determined.

        In this order: a local or stored config, the architecture's default config, the Hub's config.json.
        """
        if (config := self.known_config()) is not None:
            return config
        if self.architecture is not None:
            return KnownConfig({"model_type": self.architecture}, f"transformers' default {self.architecture}")
        try:
            folder = hub.snapshot(self.id, revision=self.revision, patterns=["config.json"])
        except hub.Unreachable as error:
            raise UserError(
                f"model: {self.id!r} is not known offline{nearest(self.id, configs.stored_configs())} and the Hub is "
                f"not available ({error}); set model.architecture, e.g. bert"
            ) from None
        return KnownConfig(_read(folder / "config.json"), f"{self.id}@{folder.name}")

    def files(self, trust: str | None = None) -> ModelFiles:
        """Locate the base model, downloading it if necessary. Raises UserError if it is not available.

        `trust` is the revision whose custom code may run: a commit of the Hub or the fingerprint of a folder.
        """
        self.require_folder()
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
            asset_note = "" if self.revision else f", not a known asset{nearest(self.id, models)}"
            raise UserError(
                f"model: {self.id!r} is not a local folder{asset_note}, and not available from the Hub: {error}"
            ) from None
        source = f"{self.id}@{folder.name}"
        code = remote_code.trusted_revision(folder, source, lambda: folder.name, trust)
        return ModelFiles(
            folder=folder, source=source, fingerprint=_fingerprint(folder, code=code is not None), code_revision=code
        )

    def _local_architecture(self) -> str | None:
        if Path(self.id).is_dir():
            try:
                value = _read(Path(self.id) / "config.json").get("model_type")
            except UserError:
                return None
            return value if isinstance(value, str) else None
        asset, stored = assets.find(self.id), configs.stored_configs().get(self.id)
        if asset is not None and asset.architecture is not None:
            return asset.architecture
        return str(stored["model_type"]) if stored else None

    def _local_config(self) -> Path | None:
        """Path of a local or cached config.json, or None."""
        if Path(self.id).is_dir():
            return Path(self.id) / "config.json"
        asset = assets.find(self.id) if self.revision is None else None
        folder = assets.cached(asset) if asset is not None and asset.type == "model" else None
        if folder is not None:
            return folder / "config.json"
        return hub.cached(self.id, revision=self.revision, file="config.json")


def _refuse_adapter(folder: Path) -> None:
    """Raise ValueError for a folder that holds an adapter, or a run of peftlab, rather than a base model."""
    if not folder.is_dir() or (folder / "config.json").exists():
        return
    for candidate, file in ((place, name) for place in (folder, folder / "adapter") for name in ADAPTER_FILES):
        if (candidate / file).exists():
            raise ValueError(
                f"{folder} holds an adapter, not a base model: give the adapter's base as model, and the adapter as "
                f"init_from: {folder}"
            )
    if (folder / "model" / "config.json").exists():
        raise ValueError(f"{folder} is a run that holds a complete model; use model: {folder / 'model'}")


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"model: {path}: cannot be read: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UserError(f"model: {path}: has no model_type")
    return config


def _complete(folder: Path) -> bool:
    """True if config and all weights exist, in one file or in the shards that an index lists."""
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
    files = {path for pattern in FILES for path in folder.glob(pattern)}
    for path in sorted(files.union(folder.rglob(CODE)) if code else files):
        digest.update(f"{path.relative_to(folder)} {sha256(path)}\n".encode())
    return digest.hexdigest()
