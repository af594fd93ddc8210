"""A suite's ledgers: a small file for each combination that was measured, or that could not be. Read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from peftlab.component import Settings
from peftlab.errors import UserError, first_error
from peftlab.io.atomic import atomic_write
from peftlab.profiling.profile import Profile
from peftlab.recipe import Recipe
from peftlab.results.run_result import Environment
from peftlab.suites.store import State, suite_folder
from peftlab.training.settings import Seeds

VERSION: Literal[1] = 1
FOLDER = "ledgers"


class ProfileRecord(Settings):
    """How measuring a combination ended."""

    version: Literal[1] = VERSION
    state: State
    reason: str | None = None  # why there is no ledger
    ledger: Profile | None = None
    recipe: dict[str, Any]  # resolved
    environment: Environment | None = None  # of what has no ledger
    seconds: float | None = None  # wall, of the process from fork to end

    @property
    def measured_on(self) -> Environment | None:
        return self.environment if self.ledger is None else self.ledger.environment


@dataclass(frozen=True)
class StoredProfile:
    """A measurement in its file."""

    path: Path
    record: ProfileRecord
    recipe: Recipe  # as it is read today


def profile_digest(recipe: Recipe) -> str:
    """Of all that a ledger depends on: learning rate, seeds and what is scored move no byte and no operation."""
    training = recipe.training.model_copy(update={"learning_rate": None})
    return recipe.model_copy(update={"training": training, "seeds": Seeds(), "score_test": True}).digest


class ProfileStore:
    """The ledgers folder of a suite."""

    def __init__(self, suite: Path) -> None:
        self.folder = suite_folder(suite) / FOLDER

    def read(self) -> dict[str, StoredProfile]:
        """All of them by `profile_digest`, in the order of file names. Raises UserError with one line."""
        found: dict[str, StoredProfile] = {}
        for path in sorted(self.folder.glob("*.json")):
            measured = read_measurement(path)
            digest = profile_digest(measured.recipe)
            if digest in found:
                raise UserError(f"{path}: another ledger of the same as {found[digest].path.name}; remove one")
            found[digest] = measured
        return found

    def write(self, recipe: Recipe, record: ProfileRecord) -> Path:
        """Whole or not at all. It takes an older one's place."""
        self.folder.mkdir(parents=True, exist_ok=True)
        digest = profile_digest(recipe)
        old = self.read().get(digest)
        path = self.folder / f"{recipe.name}-{digest}.json"
        atomic_write(path, (record.model_dump_json(indent=1) + "\n").encode())
        if old is not None and old.path != path:  # named by the digest that the same recipe had then
            old.path.unlink(missing_ok=True)
        return path


def read_measurement(path: Path) -> StoredProfile:
    """Raises UserError with one line."""
    try:
        record = ProfileRecord.model_validate_json(path.read_bytes())
        if (record.ledger is None) == (record.state == "done"):
            raise UserError(f"{path}: wants a ledger, or a state that says why there is none")
        recipe = Recipe.from_record(record.recipe)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise UserError(f"{path}: not a ledger of version {VERSION}: {first_error(error)}") from None
    return StoredProfile(path, record, recipe)
