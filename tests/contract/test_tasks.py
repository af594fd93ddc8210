"""Contract of every task with each of its test_settings; a new task is discovered and tested."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from peftlab.doctor.probe import ProbeModel, make_probe_model
from peftlab.errors import UserError
from peftlab.models.byte_tokenizer import byte_tokenizer
from peftlab.models.configs import stored_configs
from peftlab.recipe import Recipe
from peftlab.tasks import TASKS
from tests.contract.bases import require

BASES = ("google-bert/bert-base-cased", "meta-llama/Llama-3.2-1B", "google-t5/t5-small")  # one of each family
SETTINGS = [{"kind": kind, **sample} for kind, task in TASKS.items() for sample in task.test_settings]


@pytest.fixture(scope="module", params=SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    setting: dict[str, Any] = request.param
    return setting


@pytest.fixture(scope="module", params=BASES)
def probe_model(
    request: pytest.FixtureRequest, settings: dict[str, Any], tmp_path_factory: Any
) -> Iterator[ProbeModel]:
    recipe = Recipe.model_validate(
        {"name": "contract", "model": request.param, "data": "none", "task": settings, "method": "full"}
    )
    folder: Path = tmp_path_factory.mktemp("base")
    try:
        yield make_probe_model(recipe, stored_configs()[request.param], folder, device=torch.device("cpu"), width=64)
    except UserError as error:
        pytest.skip(str(error))  # no such head


def test_the_loss_of_a_batch_is_the_sum_of_the_losses_of_its_examples(probe_model: ProbeModel) -> None:
    task, model = probe_model.task, probe_model.base().model.eval()
    name = f"{task.kind} on {model.config.model_type}"
    batches = [probe_model.examples, *([example] for example in probe_model.examples)]
    losses, counts = [], []
    with torch.no_grad():
        for examples in batches:
            batch = task.collate(examples, probe_model.tokenizer.pad_token_id)
            outputs = model(**task.model_inputs(batch, model))
            losses.append(float(task.loss(outputs, batch)))
            counts.append(int(task.count_targets(batch)))
            empty = task.without_targets(batch)
            nothing = (float(task.loss(outputs, empty)), int(task.count_targets(empty)))
            promise = "a batch of `without_targets` has a loss of zero and no targets"
            require(nothing == (0.0, 0), name, promise, found=nothing, expected=(0.0, 0))
    lengths = {len(example) for example in probe_model.examples}
    promise = "examples of `sample_rows` differ in length, so that batches are padded"
    require(len(lengths) > 1, name, promise, found=f"lengths {lengths}", expected="several lengths")
    total, promise = pytest.approx(sum(losses[1:]), rel=1e-4), "`loss` of a batch is the sum over its examples"
    require(losses[0] == total, name, promise, found=losses[0], expected=total)
    promise = "`count_targets` of a batch is the sum over its examples and positive"
    require(counts[0] == sum(counts[1:]) > 0, name, promise, found=counts[0], expected=sum(counts[1:]))


def test_predictions_are_json_and_accepted_by_the_metrics(probe_model: ProbeModel) -> None:
    from peftlab.metrics import score

    task, model = probe_model.task, probe_model.base().model.eval()
    name = f"{task.kind} on {model.config.model_type}"
    batch = task.collate(probe_model.examples, probe_model.tokenizer.pad_token_id)
    with torch.no_grad():
        outputs = task.predict(model, batch, byte_tokenizer(model.config))
    records = task.merge(task.decode(outputs, probe_model.examples), probe_model.examples)
    rows = list({id(example.row): example.row for example in probe_model.examples}.values())
    for row, record in zip(rows, records, strict=True):
        reference, promise = task.reference(row), "a record contains `reference` of its row, which `verify` recomputes"
        require(reference.items() <= record.items(), name, promise, found=record, expected=reference)
        promise = "a record has the keys `predicted` and `expected`"
        keys = {"predicted", "expected"}
        require(keys <= record.keys(), name, promise, found=sorted(record), expected=sorted(keys))
    promise, again = "records survive a round trip through JSON", json.loads(json.dumps(records))
    require(again == records, name, promise, found=again, expected=records)
    scores = score(task.metrics, task.to_metric_inputs(records))
    promise = "the metrics compute the score that selects checkpoints"
    require(task.selection in scores, name, promise, found=sorted(scores), expected=task.selection)
    perfect = [{**record, "predicted": record["expected"]} for record in records]
    best, actual = (task.rank(score(task.metrics, task.to_metric_inputs(part))) for part in (perfect, records))
    promise = "correct predictions rank at least as high as those of a random model"
    require(best >= actual, name, promise, found=best, expected=f"at least {actual}")
    json.dumps([task.answer(record) for record in records])


def test_a_bound_task_is_equal_after_a_round_trip_through_json(settings: dict[str, Any]) -> None:
    kind = TASKS[settings["kind"]]
    task = kind.model_validate(settings)
    rows = task.sample_rows()
    bound = task.from_training(rows).bind(rows)
    again = kind.model_validate_json(bound.model_dump_json())
    promise = "a bound task is equal after a round trip through JSON"
    require(again == bound, settings, promise, found=again, expected=bound)
    found, expected = again.model_settings(), bound.model_settings()
    require(found == expected, settings, f"{promise}, its model settings too", found=found, expected=expected)
    twice = bound.bind(rows)
    require(twice == bound, settings, "`bind` changes a bound task no more", found=twice, expected=bound)
    baseline = bound.constant_baseline(rows, rows)
    promise = "`constant_baseline` is None or contains the score that selects checkpoints"
    require(baseline is None or task.selection in baseline, settings, promise, found=baseline, expected=task.selection)
