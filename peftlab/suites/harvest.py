"""From a run's folder to what a suite keeps of it: result, predictions without the data, hashes of the tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from peftlab import metrics
from peftlab.disk import sha256
from peftlab.part import BadInput, first_mistake
from peftlab.recipe import Recipe
from peftlab.results import FILE, RunResult, read_result
from peftlab.suites.store import Counted, Predictions, Record
from peftlab.tasks import Task


def harvest(folder: Path) -> tuple[Record, Predictions]:
    """What is kept of a finished run."""
    result = read_result(folder)
    task = Recipe.model_validate_json(json.dumps(result.recipe)).task
    path = folder / "predictions.jsonl"
    try:
        with path.open(encoding="utf-8") as file:  # not splitlines: it ends a line at characters that texts have
            records = [json.loads(line) for line in file]
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from None
    splits = {split: [record for record in records if record["split"] == split] for split in result.metrics}
    keys = metrics.needed(task.metrics)
    predictions = Predictions(
        kept={split: {key: [record[key] for record in part] for key in keys} for split, part in splits.items()},
        counts={split: counted(task, part) for split, part in splits.items()},
    )
    tensors = {path.name: sha256(path) for path in sorted(folder.glob("*/*.safetensors"))}
    return Record(state="done", result=result, tensors=tensors), predictions


def counted(task: Task, records: list[dict[str, Any]]) -> list[Counted]:
    """The counts, row by row, of those of the task's metrics that have some."""
    rows = [task.graded([record]) for record in records]
    return [Counted(**counts._asdict()) for counts in metrics.count(task.metrics, rows)]


def finished_runs(folder: Path) -> dict[str, list[Path]]:
    """Folders of finished runs below `folder`, by digest of their recipes as they are read today."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob(FILE)):
        if path.parent.suffix in (".part", ".old"):  # of a run at work, or of one that was replaced
            continue
        result: RunResult = read_result(path)
        try:
            digest = Recipe.model_validate_json(json.dumps(result.recipe)).digest
        except ValidationError as error:
            raise BadInput(f"{path}: recipe: {first_mistake(error)}") from None
        found.setdefault(digest, []).append(path.parent)
    return found
