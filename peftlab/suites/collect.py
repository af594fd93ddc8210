"""From a run's folder to what a suite keeps of it: result, predictions without the data, hashes of the tensors."""

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
from peftlab.suites.store import Counted, Predictions, Record
from peftlab.tasks import Task


def collect(folder: Path) -> tuple[Record, Predictions]:
    """What is kept of a finished run."""
    result = read_result(folder)
    task = Recipe.from_record(result.recipe).task
    path = folder / "predictions.jsonl"
    try:
        with path.open(encoding="utf-8") as file:  # not splitlines: it ends a line at characters that texts have
            records = [json.loads(line) for line in file]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    splits = {split: [record for record in records if record["split"] == split] for split in result.metrics}
    keys = metrics.prediction_keys(task.metrics)
    predictions = Predictions(
        kept={split: {key: [record[key] for record in part] for key in keys} for split, part in splits.items()},
        counts={split: counted(task, part) for split, part in splits.items()},
    )
    tensors = {path.name: sha256(path) for path in sorted(folder.glob("*/*.safetensors"))}
    return Record(state="done", result=result, tensors=tensors), predictions


def counted(task: Task, records: list[dict[str, Any]], names: Sequence[str] | None = None) -> list[Counted]:
    """Sufficient statistics, one row per record, of the task's metrics or of those `names`, as far as they have any."""
    rows = [task.to_metric_inputs([record]) for record in records]
    return [
        Counted(score=statistics.score, form=statistics.aggregate, rows=statistics.rows)
        for statistics in metrics.sufficient_statistics(task.metrics if names is None else names, rows)
    ]


def finished_runs(folder: Path) -> dict[str, list[Path]]:
    """Folders of finished runs below `folder`, by digest of their recipes as they are read today."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob(FILE)):
        if path.parent.suffix in (".part", ".old"):  # of a run at work, or of one that was replaced
            continue
        result: RunResult = read_result(path)
        try:
            digest = Recipe.from_record(result.recipe).digest
        except ValidationError as error:
            raise UserError(f"{path}: recipe: {first_error(error)}") from None
        found.setdefault(digest, []).append(path.parent)
    return found
