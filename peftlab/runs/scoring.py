"""What a model's records over a split are worth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftlab import metrics
from peftlab.data.examples import Encoded, Row
from peftlab.errors import UserError
from peftlab.tasks import Task
from peftlab.training.train_log import Records

BATCH_TOKENS = 4096  # padding included; no gradients are kept, so larger than a training batch


def score(task: Task, records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The task's metrics over decoded records."""
    return metrics.score(task.metrics, task.to_metric_inputs(records))


def selectable(task: Task, records: Records) -> tuple[dict[str, float], Records]:
    """Scores of the validation split, by which the best state can be chosen, and the records."""
    scores = score(task, records)
    if task.undefined_score is not None:
        scores.setdefault(task.selection, task.undefined_score)
    check_selectable(task, scores, len(records))
    return scores, records


def check_possible(task: Task, floor: Mapping[str, float] | None, rows: Sequence[Row]) -> None:
    """Raise UserError if no model can have a score on these rows, as that of a constant answer or of the truth says."""
    if floor is not None and task.undefined_score is not None:
        truths = map(task.reference, rows)
        floor = metrics.score(task.metrics, [{"predicted": t["expected"], "probability": 1.0, **t} for t in truths])
    check_selectable(task, floor, len(rows))


def check_selectable(task: Task, scores: Mapping[str, float] | None, count: int) -> None:
    """Raise UserError if these scores of `count` validation examples are there, but not the one that states need."""
    if scores is not None and task.selection not in scores:
        raise UserError(
            f"data: {task.selection} is undefined on the validation split's {count} examples, "
            "so that no state can be chosen: they are too few or too much alike"
        )


def write(predictions: Mapping[str, Records], encoded: Mapping[str, Encoded], path: Path) -> None:
    """One line of JSON a record, which says the file and the line of its row."""
    with path.open("w", encoding="utf-8") as file:
        for split, records in predictions.items():
            for number, (record, row) in enumerate(zip(records, encoded[split].rows, strict=True)):
                line = {"split": split, "example": number, "where": row.file_and_line, **record}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
