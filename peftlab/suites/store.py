"""A suite's results: a small file for each run that ended, however it ended, and its predictions without the data."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from peftlab.component import Settings
from peftlab.errors import UserError, first_error
from peftlab.io.atomic import atomic_write
from peftlab.recipe import Recipe
from peftlab.results.run_result import Environment, RunResult

VERSION: Literal[1] = 1
FOLDER = "results"
PREDICTIONS = ".predictions.json.gz"

State = Literal["done", "out of memory", "unsupported", "diverged", "timed out", "failed"]
RETRYABLE: tuple[State, ...] = (
    "out of memory",
    "timed out",
    "failed",
)  # what another machine or another day may change


class Record(Settings):
    """How a run ended."""

    version: Literal[1] = VERSION
    state: State
    reason: str | None = None  # why it is not done
    result: RunResult | None = None  # of what is done
    recipe: dict[str, Any] | None = None  # of what is not: resolved
    environment: Environment | None = None  # likewise
    tensors: dict[str, str] = Field(default={})  # sha256 of the files that hold the trained parameters
    seconds: float | None = None  # wall, of the run's process from fork to end
    high_water_bytes: int | None = None  # resident, of that process

    @property
    def resolved(self) -> dict[str, Any]:
        """The recipe, as it was resolved then."""
        recipe = self.recipe if self.result is None else self.result.recipe
        assert recipe is not None
        return recipe


class Counted(Settings):
    """A score's counts, row by row of the data: what paired statistics need."""

    score: str
    form: str
    rows: list[list[float]]

    @model_validator(mode="after")
    def _can_be_summed(self) -> Self:
        from peftlab.statistics.aggregates import AGGREGATES  # here, for it imports numpy

        if self.form not in AGGREGATES:
            raise ValueError(f"{self.form!r} is none of {', '.join(AGGREGATES)}")
        if len({len(row) for row in self.rows}) > 1:
            raise ValueError(f"rows of {self.score} differ in length")
        return self


class Predictions(Settings):
    """What was predicted for each example, in the order of the data; nothing of the data themselves."""

    version: Literal[1] = VERSION
    kept: dict[str, dict[str, list[Any]]]  # by split: what of its records the metrics need, e.g. "predicted"
    counts: dict[str, list[Counted]]  # by split

    def found_in(self, newer: Predictions) -> bool:
        """Whether all of it is there too, alike; newer code may count for more of the metrics."""
        kept = all(part.items() <= newer.kept.get(split, {}).items() for split, part in self.kept.items())
        return kept and all(
            counts in newer.counts.get(split, []) for split, part in self.counts.items() for counts in part
        )


@dataclass(frozen=True)
class Stored:
    """A record in its file, and its recipe as it is read today: fields that came later have their defaults."""

    path: Path
    record: Record
    recipe: Recipe

    @property
    def state(self) -> State:
        return self.record.state

    @property
    def predictions_path(self) -> Path:
        return self.path.with_name(self.path.name.removesuffix(".json") + PREDICTIONS)

    def predictions(self) -> Predictions:
        """Raises UserError if they cannot be read."""
        return read_predictions(self.predictions_path)


class Store:
    """The results folder of a suite. Files that others add are seen at the next `records`."""

    def __init__(self, suite: Path) -> None:
        self.folder = suite_folder(suite) / FOLDER
        self._read: dict[Path, tuple[int, Stored]] = {}

    def records(self) -> dict[str, Stored]:
        """All records by digest of the recipe as it is read today, in the order of file names."""
        found: dict[str, Stored] = {}
        for path in sorted(self.folder.glob("*.json")):
            try:
                changed = path.stat().st_mtime_ns
            except FileNotFoundError:  # another runner has put a newer one in its place
                continue
            if path not in self._read or self._read[path][0] != changed:
                self._read[path] = (changed, read_record(path))
            stored = self._read[path][1]
            digest = stored.recipe.digest
            if digest in found:
                raise UserError(f"{path}: another result of the same run as {found[digest].path.name}; remove one")
            found[digest] = stored
        return found

    def write(self, recipe: Recipe, record: Record, predictions: Predictions | None) -> Path:
        """Put a record into the folder, its predictions first; whole or not at all. It takes an older one's place."""
        self.folder.mkdir(parents=True, exist_ok=True)
        old = self.records().get(recipe.digest)
        path = self.folder / f"{file_stem(recipe)}.json"
        if predictions is not None:
            atomic_write(path.with_name(path.stem + PREDICTIONS), packed(predictions))
        atomic_write(path, (record.model_dump_json(indent=1) + "\n").encode())
        if old is not None and old.path != path:  # named by the digest that the same recipe had then
            old.path.unlink(missing_ok=True)
            old.predictions_path.unlink(missing_ok=True)
        return path


def suite_folder(path: Path) -> Path:
    """A suite may be named by its folder, or by the file in it."""
    return path if path.is_dir() else path.parent


def file_stem(recipe: Recipe) -> str:
    """`ner-lora-nf4-seed3-0123456789ab`, or of a trial `ner-lora-none-rate0.0015-0123456789ab`."""
    sort = f"seed{recipe.seeds.initialization}"
    if not recipe.score_test:
        sort = f"rate{recipe.learning_rate:g}-{sort}"
    return f"{recipe.name}-{sort}-{recipe.digest}"


def validation_scores(records: Mapping[str, Stored]) -> dict[str, float | None]:
    """By digest, for the choice of learning rates: turned so that larger is better."""
    scores: dict[str, float | None] = {}
    for digest, stored in records.items():
        result = stored.record.result
        scores[digest] = None if result is None else stored.recipe.task.rank(result.metrics["validation"])
    return scores


def read_record(path: Path) -> Stored:
    """Raises UserError with one line."""
    try:
        record = Record.model_validate_json(path.read_bytes())
        if (record.result is None) == (record.recipe is None):
            raise UserError(f"{path}: wants a result, or the recipe of a run that has none")
        if (record.state == "done") != (record.result is not None):
            raise UserError(f"{path}: {record.state}, with {'no' if record.result is None else 'a'} result")
        recipe = Recipe.from_record(record.resolved)
        splits = ["validation", "test"] if recipe.score_test else ["validation"]
        if record.result is not None and sorted(record.result.metrics) != sorted(splits):
            raise UserError(f"{path}: scores of {', '.join(record.result.metrics)}; wanted are {', '.join(splits)}")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise UserError(f"{path}: not a record of version {VERSION}: {first_error(error)}") from None
    return Stored(path, record, recipe)


def read_predictions(path: Path) -> Predictions:
    """Raises UserError with one line."""
    try:
        return Predictions.model_validate_json(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except ValidationError as error:
        raise UserError(f"{path}: not predictions of version {VERSION}: {first_error(error)}") from None


def packed(predictions: Predictions) -> bytes:
    """The same bytes for the same predictions."""
    text = json.dumps(predictions.model_dump(mode="json"), separators=(",", ":"), ensure_ascii=False)
    return gzip.compress(text.encode(), compresslevel=9, mtime=0)
