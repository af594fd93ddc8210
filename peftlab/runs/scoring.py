"""Scores of decoded predictions, and the file that stores them."""

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

BATCH_TOKENS = 4096  # padding included; without gradients a batch can be larger than in training


def score(task: Task, records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Values of the task's metrics over decoded records."""
    return metrics.score(task.metrics, task.to_metric_inputs(records))


def selectable(task: Task, records: Records) -> tuple[dict[str, float], Records]:
    """Scores of the validation split and its records. Raises UserError if no best state can be chosen by the scores."""
    scores = score(task, records)
    if task.undefined_score is not None:
        scores.setdefault(task.selection, task.undefined_score)
    check_selectable(task, scores, len(records))
    return scores, records


def check_possible(task: Task, baseline: Mapping[str, float] | None, rows: Sequence[Row]) -> None:
    """Raise UserError if the selection metric is undefined on these validation rows.

    `baseline` are the scores of a constant answer. For a metric that such an answer leaves undefined, correct answers
    are scored instead.
    """
    if baseline is not None and task.undefined_score is not None:
        references = map(task.reference, rows)
        correct = [{"predicted": r["expected"], "probability": 1.0, **r} for r in references]
        baseline = metrics.score(task.metrics, correct)
    check_selectable(task, baseline, len(rows))


def check_selectable(task: Task, scores: Mapping[str, float] | None, count: int) -> None:
    """Raise UserError if these scores of `count` validation examples lack the one that chooses the best state."""
    if scores is not None and task.selection not in scores:
        raise UserError(
            f"data: {task.selection} is undefined on the validation split's {count} examples, "
            "so that no best state can be chosen: they are too few or too similar"
        )


def write(predictions: Mapping[str, Records], encoded: Mapping[str, Encoded], path: Path) -> None:
    """Write one line of JSON per record, with the file and line of its row."""
    with path.open("w", encoding="utf-8") as file:
        for split, records in predictions.items():
            for number, (record, row) in enumerate(zip(records, encoded[split].rows, strict=True)):
                line = {"split": split, "example": number, "where": row.file_and_line, **record}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
