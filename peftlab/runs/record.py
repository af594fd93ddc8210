"""Parts of a run's result: the fields of a RunResult, from what the run has at hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftlab import metrics
from peftlab.data.examples import Encoded
from peftlab.io import redact
from peftlab.loading.inputs import Inputs
from peftlab.recipe import Recipe
from peftlab.results.run_result import Cost, Curve, MicroBatchReduction, SplitCounts
from peftlab.runs.resume import History
from peftlab.tasks import Task
from peftlab.training.train_log import TrainLog


@dataclass(frozen=True)
class RunData:
    """The data of a run, encoded."""

    inputs: Inputs
    encoded: Mapping[str, Encoded]  # by split
    skipped: Mapping[str, dict[str, int]]  # split -> reason -> rows left out
    constant_baseline: dict[str, dict[str, float]]  # split -> metric -> score of always giving the same answer


def of_recipe(recipe: Recipe, task: Task) -> dict[str, Any]:
    """Fields of a RunResult that follow from the recipe."""
    return {
        "name": recipe.name,
        "digest": recipe.digest,
        "recipe": redact.redacted(recipe.to_record()),
        "fidelity": recipe.method.fidelity,
        "metric_signatures": metrics.signatures(task.metrics),
        "selection": task.selection,
        "selection_minimized": task.lower_is_better,
    }


def of_data(data: RunData) -> dict[str, Any]:
    """Fields of a RunResult that describe the data and the base model."""
    rows, files = data.inputs.rows, data.inputs.files
    return {
        "constant_baseline": data.constant_baseline,
        "splits": {split: _counts(data, split) for split in data.encoded},
        "data_source": rows.source,
        "data_fingerprint": rows.fingerprint,
        "model_source": files.source,
        "model_fingerprint": files.fingerprint,
        "model_code": files.code_revision,
    }


def of_log(recipe: Recipe, task: Task, log: TrainLog) -> dict[str, Any]:
    """Fields of a RunResult that describe the course of the training."""
    evaluations = log.evaluations
    return {
        "best_step": log.best_step if recipe.training.keep_best else None,
        "stopped_early": log.stopped_early,
        "curve": Curve(
            steps=[evaluation.step for evaluation in evaluations],
            scores=[evaluation.scores[task.selection] for evaluation in evaluations],
            losses=[evaluation.loss for evaluation in evaluations],
            validation_losses=[evaluation.validation_loss for evaluation in evaluations],
        ),
        "unused": log.unused,
        "micro_batch_reductions": [
            MicroBatchReduction(**dataclasses.asdict(past)) for past in log.micro_batch_reductions
        ],
    }


def cost(history: History, log: TrainLog, adapter_bytes: int) -> Cost:
    return Cost(
        load_seconds=round(history.load_seconds, 3),
        train_seconds=round(log.seconds, 3),
        evaluate_seconds=round(history.evaluate_seconds, 3),
        optimizer_steps=len(log.steps),
        tokens=log.tokens,
        tokens_per_second=round(log.tokens / log.seconds, 1),
        padding_fraction=round(1 - log.tokens / log.padded_tokens, 4),
        adapter_bytes=adapter_bytes,
    )


def _counts(data: RunData, split: str) -> SplitCounts:
    encoded, task = data.encoded[split], data.inputs.task
    return SplitCounts(
        examples=len(encoded.rows),
        tokens=sum(sum(task.lengths(example)) for example in encoded.examples),
        dropped=encoded.counts,
        skipped=data.skipped[split],
        leaks=data.inputs.rows.leaks.get(split),
    )
