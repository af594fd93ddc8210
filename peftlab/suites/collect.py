"""Collecting a finished run: its result, its predictions without the data, and hashes of its tensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from peftlab import metrics
from peftlab.errors import UserError, first_error
from peftlab.io.atomic import sha256
from peftlab.recipe import Recipe
from peftlab.results.result_file import FILE, read_result
from peftlab.results.run_result import RunResult
from peftlab.suites.store import Predictions, Record, ScoreStatistics
from peftlab.tasks import Task


def collect(folder: Path) -> tuple[Record, Predictions]:
    """The record and predictions of the finished run in `folder`. Raises UserError if they cannot be read."""
    result = read_result(folder)
    task = Recipe.from_record(result.recipe).task
    path = folder / "predictions.jsonl"
    try:
        with path.open(encoding="utf-8") as file:  # not splitlines, which also splits at characters inside texts
            records = [json.loads(line) for line in file]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    splits = {split: [record for record in records if record["split"] == split] for split in result.metrics}
    keys = metrics.prediction_keys(task.metrics)
    predictions = Predictions(
        columns={split: {key: [record[key] for record in part] for key in keys} for split, part in splits.items()},
        statistics={split: score_statistics(task, part, task.metrics) for split, part in splits.items()},
    )
    tensors = {path.name: sha256(path) for path in sorted(folder.glob("*/*.safetensors"))}
    return Record(state="done", result=result, tensors=tensors), predictions


def score_statistics(task: Task, records: list[dict[str, Any]], names: Sequence[str]) -> list[ScoreStatistics]:
    """Sufficient statistics of the metrics `names`, one row per record, as far as they have any."""
    rows = [task.to_metric_inputs([record]) for record in records]
    return [
        ScoreStatistics(score=statistics.score, aggregate=statistics.aggregate, rows=statistics.rows)
        for statistics in metrics.sufficient_statistics(names, rows)
    ]


def finished_runs(folder: Path) -> dict[str, list[Path]]:
    """Folders of finished runs below `folder`, by the digest that their recipes have now. Raises UserError."""
    runs: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob(FILE)):
        if path.parent.suffix in (".part", ".old"):  # an unfinished run, or one that was replaced
            continue
        result: RunResult = read_result(path)
        try:
            digest = Recipe.from_record(result.recipe).digest
        except ValidationError as error:
            raise UserError(f"{path}: recipe: {first_error(error)}") from None
        runs.setdefault(digest, []).append(path.parent)
    return runs
