"""Rows, logits and targets for the tests of sequence classification."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from peftlab.data.examples import Row
from peftlab.tasks.sequence_classification import SequenceClassification as Task


def row(label: Any = "pos", text: Any = "a good film", line: int = 7, **fields: Any) -> Row:
    return Row(f"mine.jsonl:{line}", {"text": text, "label": label, **fields})


def rows(*labels: Any) -> list[Row]:
    return [row(label, f"text {i}", i + 1) for i, label in enumerate(labels)]


def outputs(logits: Any) -> Any:
    return SimpleNamespace(logits=torch.tensor(logits))


def targets(task: Task, rows: list[Row]) -> dict[str, torch.Tensor]:
    return {"labels": task._targets(rows)}
