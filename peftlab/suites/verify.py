"""Are a suite's numbers what they say? Computed again from the stored predictions and the data, without a model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from peftlab import metrics
from peftlab.data.examples import Splits
from peftlab.errors import UserError
from peftlab.suites.collect import counted
from peftlab.suites.store import Predictions, Store, Stored
from peftlab.suites.suite_file import suite_file

TOLERANCE = 1e-9  # of sums in another order


@dataclass(frozen=True)
class Verdict:
    """Of one record."""

    stored: Stored
    wrong: list[str]  # what is not as it says; nothing if all is


def verify(folder: Path) -> Iterator[Verdict]:
    """Recompute every metric and every count of every finished run. Raises UserError if the data cannot be had."""
    suite_file(folder)  # a misspelt one inside a suite would be taken for it
    data: dict[str, Splits] = {}
    for stored in Store(folder).records().values():
        if stored.record.result is None:
            continue
        recipe = stored.recipe
        key = recipe.model_dump_json(include={"data", "task", "replay"})
        if key not in data:
            data[key] = recipe.rows()
        try:
            yield Verdict(stored, check(stored, stored.predictions(), data[key]))
        except UserError as error:
            yield Verdict(stored, [str(error)])


def check(stored: Stored, predictions: Predictions, rows: Splits) -> list[str]:
    """What in a record its predictions and the data do not bear out."""
    result, task = stored.record.result, stored.recipe.task
    assert result is not None
    if rows.fingerprint != result.data_fingerprint:
        return [f"its data were others: fingerprint {result.data_fingerprint[:12]}, here {rows.fingerprint[:12]}"]
    if predictions.kept.keys() != result.metrics.keys():
        return [f"predictions of {', '.join(predictions.kept)}, but scores of {', '.join(result.metrics)}"]
    if predictions.counts.keys() != result.metrics.keys():
        return [f"counts of {', '.join(predictions.counts) or 'nothing'}, but scores of {', '.join(result.metrics)}"]
    task = task.from_training(rows.rows["train"]).bind(row for part in rows.rows.values() for row in part)
    wrong = []
    for split, kept in predictions.kept.items():
        if missing := [key for key in metrics.prediction_keys(task.metrics) if key not in kept]:
            wrong.append(f"{split}: no {', '.join(missing)} among its predictions")
            continue
        if any(len(column) != len(rows.rows[split]) for column in kept.values()):
            wrong.append(f"{split}: predictions for other than {len(rows.rows[split])} examples")
            continue
        records = [
            {**task.reference(row), **{key: column[i] for key, column in kept.items()}}
            for i, row in enumerate(rows.rows[split])
        ]
        try:
            scores = metrics.score(task.metrics, task.to_metric_inputs(records))
            own = {counts.score: counts for counts in counted(task, records)}  # older records have not all of them
        except (KeyError, TypeError, ValueError) as error:  # of values that no run would have left
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            wrong.append(f"{split}: its predictions cannot be scored: {reason}")
            continue
        for name in sorted(scores.keys() | result.metrics[split].keys()):
            told, found = result.metrics[split].get(name), scores.get(name)
            if told is None or found is None or not math.isclose(told, found, abs_tol=TOLERANCE):
                wrong.append(f"{split} {name}: says {told}, its predictions give {found}")
        if any(own.get(counts.score) != counts for counts in predictions.counts[split]):
            wrong.append(f"{split}: its counts are not those of its predictions")
    return wrong
