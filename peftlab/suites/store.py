"""The results of a suite: one small JSON file per run that ended, and its predictions without the data."""

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
from peftlab.results.version_1 import upgraded

VERSION: Literal[2] = 2
FOLDER = "results"
PREDICTIONS = ".predictions.json.gz"

State = Literal["done", "out of memory", "unsupported", "diverged", "timed out", "failed"]
RETRYABLE: tuple[State, ...] = ("out of memory", "timed out", "failed")
"""States that another machine or another attempt may change."""


class Record(Settings):
    """How a run ended."""

    version: Literal[2] = VERSION
    """Format version. Files of version 1 are read too."""
    state: State
    """"done", or why there is no result."""
    reason: str | None = None
    """One line on why there is no result; null if there is one."""
    result: RunResult | None = None
    """The result; null if the state is not "done"."""
    recipe: dict[str, Any] | None = None
    """The resolved recipe of a run without a result; a result has its own."""
    environment: Environment | None = None
    """Code, libraries and hardware of a run without a result; a result has its own."""
    tensors: dict[str, str] = Field(default={})
    """SHA-256 of the files with the trained parameters, by file name."""
    seconds: float | None = None
    """Wall-clock seconds of the run's process, from fork to end."""
    peak_rss_bytes: int | None = None
    """Peak resident memory of the run's process, or of the largest one of several."""

    @model_validator(mode="before")
    @classmethod
    def _read_version_1(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("version") == 1:
            return upgraded(values, {"high_water_bytes": "peak_rss_bytes"})
        return values

    @property
    def resolved(self) -> dict[str, Any]:
        """The recipe as it was resolved then."""
        recipe = self.recipe if self.result is None else self.result.recipe
        assert recipe is not None
        return recipe


class ScoreStatistics(Settings):
    """Sufficient statistics of one score, which paired tests and intervals need."""

    score: str
    """Name of the score, e.g. "entity_f1"."""
    aggregate: str
    """Function of `statistics.aggregates.AGGREGATES` that turns summed rows into the score."""
    rows: list[list[float]]
    """One row per example, in the order of the data."""

    @model_validator(mode="before")
    @classmethod
    def _read_version_1(cls, values: Any) -> Any:
        if isinstance(values, dict) and "form" in values:
            return {"aggregate" if key == "form" else key: value for key, value in values.items()}
        return values

    @model_validator(mode="after")
    def _check_rows(self) -> Self:
        from peftlab.statistics.aggregates import AGGREGATES  # late: numpy

        if self.aggregate not in AGGREGATES:
            raise ValueError(f"{self.aggregate!r} is none of {', '.join(AGGREGATES)}")
        if len({len(row) for row in self.rows}) > 1:
            raise ValueError(f"rows of {self.score} differ in length")
        return self


class Predictions(Settings):
    """Predictions for each example, in the order of the data, without the data themselves."""

    version: Literal[2] = VERSION
    """Format version. Files of version 1 are read too."""
    columns: dict[str, dict[str, list[Any]]]
    """By split, the columns that the metrics read, e.g. "predicted", with one value per example."""
    statistics: dict[str, list[ScoreStatistics]]
    """By split, the sufficient statistics of the scores that have some."""

    @model_validator(mode="before")
    @classmethod
    def _read_version_1(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("version", VERSION) == 1:
            return upgraded(values, {"kept": "columns", "counts": "statistics"})
        return values

    def contained_in(self, newer: Predictions) -> bool:
        """True if `newer` has the same columns and statistics; it may have statistics of further scores."""
        columns = all(part.items() <= newer.columns.get(split, {}).items() for split, part in self.columns.items())
        return columns and all(
            each in newer.statistics.get(split, []) for split, part in self.statistics.items() for each in part
        )


@dataclass(frozen=True)
class Stored:
    """A record in its file."""

    path: Path
    record: Record
    recipe: Recipe
    """The record's recipe as the code reads it now: settings added since have their defaults."""

    @property
    def state(self) -> State:
        return self.record.state

    @property
    def predictions_path(self) -> Path:
        return self.path.with_name(self.path.name.removesuffix(".json") + PREDICTIONS)

    def predictions(self) -> Predictions:
        """The stored predictions. Raises UserError if they cannot be read."""
        return read_predictions(self.predictions_path)


class Store:
    """The results folder of a suite. Each call of `records` sees files that other runners have added."""

    def __init__(self, suite: Path) -> None:
        self.folder = suite_folder(suite) / FOLDER
        self._read: dict[Path, tuple[int, Stored]] = {}

    def records(self) -> dict[str, Stored]:
        """All records by the digest that their recipe has now, in the order of file names. Raises UserError."""
        records: dict[str, Stored] = {}
        for path in sorted(self.folder.glob("*.json")):
            try:
                changed = path.stat().st_mtime_ns
            except FileNotFoundError:  # replaced by another runner
                continue
            if path not in self._read or self._read[path][0] != changed:
                self._read[path] = (changed, read_record(path))
            stored = self._read[path][1]
            digest = stored.recipe.digest
            if digest in records:
                raise UserError(f"{path}: another result of the same run as {records[digest].path.name}; remove one")
            records[digest] = stored
        return records

    def write(self, recipe: Recipe, record: Record, predictions: Predictions | None) -> Path:
        """Write a record atomically, after its predictions, in place of an older record of the same run."""
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
    """The folder of a suite that is named by its folder or its file."""
    return path if path.is_dir() else path.parent


def file_stem(recipe: Recipe) -> str:
    """File name of a record: `ner-lora-nf4-seed3-<digest>`, or `ner-lora-none-rate0.0015-seed0-<digest>` of a trial."""
    label = f"seed{recipe.seeds.initialization}"
    if not recipe.score_test:
        label = f"rate{recipe.learning_rate:g}-{label}"
    return f"{recipe.name}-{label}-{recipe.digest}"


def validation_scores(records: Mapping[str, Stored]) -> dict[str, float | None]:
    """Validation scores by digest, with their sign such that larger is better; None for a run without a score."""
    scores: dict[str, float | None] = {}
    for digest, stored in records.items():
        result = stored.record.result
        scores[digest] = None if result is None else stored.recipe.task.rank(result.metrics["validation"])
    return scores


def read_record(path: Path) -> Stored:
    """Read one record. Raises UserError with one line."""
    try:
        record = Record.model_validate_json(path.read_bytes())
        if (record.result is None) == (record.recipe is None):
            raise UserError(f"{path}: expected a result, or the recipe of a run without one")
        if (record.state == "done") != (record.result is not None):
            raise UserError(f"{path}: {record.state}, with {'no' if record.result is None else 'a'} result")
        recipe = Recipe.from_record(record.resolved)
        splits = ["validation", "test"] if recipe.score_test else ["validation"]
        if record.result is not None and sorted(record.result.metrics) != sorted(splits):
            raise UserError(f"{path}: scores of {', '.join(record.result.metrics)}; expected {', '.join(splits)}")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise UserError(f"{path}: not a record of version 1 or 2: {first_error(error)}") from None
    return Stored(path, record, recipe)


def read_predictions(path: Path) -> Predictions:
    """Read one predictions file. Raises UserError with one line."""
    try:
        return Predictions.model_validate_json(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except ValidationError as error:
        raise UserError(f"{path}: not predictions of version 1 or 2: {first_error(error)}") from None


def packed(predictions: Predictions) -> bytes:
    """The predictions as compressed JSON: equal bytes for equal predictions."""
    text = json.dumps(predictions.model_dump(mode="json"), separators=(",", ":"), ensure_ascii=False)
    return gzip.compress(text.encode(), compresslevel=9, mtime=0)
