"""The profiles of a suite: one small JSON file per row that was measured or could not be. Read without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError, model_validator

from peftlab.component import Settings
from peftlab.errors import UserError, first_error
from peftlab.io.atomic import atomic_write
from peftlab.profiling.profile import Profile
from peftlab.recipe import Recipe
from peftlab.results.run_result import Environment
from peftlab.suites.store import State, suite_folder
from peftlab.training.settings import Seeds

VERSION: Literal[2] = 2
FOLDER = "profiles"
FOLDER_OF_VERSION_1 = "ledgers"  # read too


class ProfileRecord(Settings):
    """How the measurement of a row ended."""

    version: Literal[2] = VERSION
    """Format version. Files of version 1 are read too."""
    state: State
    """"done", or why there is no profile."""
    reason: str | None = None
    """One line on why there is no profile; null if there is one."""
    profile: Profile | None = None
    """The measurement; null if the state is not "done"."""
    recipe: dict[str, Any]
    """The resolved recipe that was measured."""
    environment: Environment | None = None
    """Code, libraries and hardware of a measurement that failed; a profile has its own."""
    seconds: float | None = None
    """Wall-clock seconds of the process, from fork to end."""

    @model_validator(mode="before")
    @classmethod
    def _read_version_1(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("version", VERSION) == 1:
            renamed = {"ledger": "profile"}
            return {renamed.get(key, key): value for key, value in values.items()} | {"version": VERSION}
        return values

    @property
    def measured_on(self) -> Environment | None:
        """The environment of the measurement, failed or not."""
        return self.environment if self.profile is None else self.profile.environment


@dataclass(frozen=True)
class StoredProfile:
    """A profile record in its file."""

    path: Path
    record: ProfileRecord
    recipe: Recipe
    """The record's recipe as the code reads it now: settings added since have their defaults."""

    @property
    def state(self) -> State:
        return self.record.state


def profile_digest(recipe: Recipe) -> str:
    """Digest of everything that a profile depends on: learning rate, seeds and scored splits change no cost."""
    training = recipe.training.model_copy(update={"learning_rate": None})
    return recipe.model_copy(update={"training": training, "seeds": Seeds(), "score_test": True}).digest


class ProfileStore:
    """The profiles folder of a suite."""

    def __init__(self, suite: Path) -> None:
        self.folder = suite_folder(suite) / FOLDER

    def records(self) -> dict[str, StoredProfile]:
        """All profiles by `profile_digest`, in the order of file names. Raises UserError."""
        records: dict[str, StoredProfile] = {}
        paths = [*self.folder.with_name(FOLDER_OF_VERSION_1).glob("*.json"), *self.folder.glob("*.json")]
        for path in sorted(paths, key=lambda path: path.name):
            stored = read_profile(path)
            digest = profile_digest(stored.recipe)
            if digest in records:
                raise UserError(f"{path}: another profile of the same row as {records[digest].path.name}; remove one")
            records[digest] = stored
        return records

    def write(self, recipe: Recipe, record: ProfileRecord) -> Path:
        """Write a record atomically, in place of an older one of the same row."""
        self.folder.mkdir(parents=True, exist_ok=True)
        digest = profile_digest(recipe)
        old = self.records().get(digest)
        path = self.folder / f"{recipe.name}-{digest}.json"
        atomic_write(path, (record.model_dump_json(indent=1) + "\n").encode())
        if old is not None and old.path != path:  # named by the digest that the same recipe had then
            old.path.unlink(missing_ok=True)
        return path


def read_profile(path: Path) -> StoredProfile:
    """Read one file. Raises UserError with one line."""
    try:
        record = ProfileRecord.model_validate_json(path.read_bytes())
        if (record.profile is None) == (record.state == "done"):
            raise UserError(f"{path}: expected a profile, or a state that says why there is none")
        recipe = Recipe.model_validate_json(json.dumps(record.recipe))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise UserError(f"{path}: not a profile of version 1 or 2: {first_error(error)}") from None
    return StoredProfile(path, record, recipe)
