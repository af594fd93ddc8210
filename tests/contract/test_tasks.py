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
from peftlab.models.shapes import shapes
from peftlab.models.tiny_model import byte_tokenizer
from peftlab.recipe import Recipe
from peftlab.tasks import TASKS

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
        yield make_probe_model(recipe, shapes()[request.param], folder, device=torch.device("cpu"), width=64)
    except UserError as error:
        pytest.skip(str(error))  # no such head


def test_the_loss_of_a_batch_is_the_sum_of_the_losses_of_its_examples(probe_model: ProbeModel) -> None:
    task, model = probe_model.task, probe_model.base().model.eval()
    batches = [probe_model.examples, *([example] for example in probe_model.examples)]
    losses, counts = [], []
    with torch.no_grad():
        for examples in batches:
            batch = task.collate(examples, probe_model.tokenizer.pad_token_id)
            outputs = model(**task.model_inputs(batch, model))
            losses.append(float(task.loss(outputs, batch)))
            counts.append(int(task.count_targets(batch)))
            empty = task.without_targets(batch)
            assert (float(task.loss(outputs, empty)), int(task.count_targets(empty))) == (0.0, 0)
    assert len({len(example) for example in probe_model.examples}) > 1
    assert losses[0] == pytest.approx(sum(losses[1:]), rel=1e-4)
    assert counts[0] == sum(counts[1:]) > 0


def test_predictions_are_json_and_accepted_by_the_metrics(probe_model: ProbeModel) -> None:
    from peftlab.metrics import score

    task, model = probe_model.task, probe_model.base().model.eval()
    batch = task.collate(probe_model.examples, probe_model.tokenizer.pad_token_id)
    with torch.no_grad():
        outputs = task.predict(model, batch, byte_tokenizer(model.config))
    records = task.merge(task.decode(outputs, probe_model.examples), probe_model.examples)
    rows = list({id(example.row): example.row for example in probe_model.examples}.values())
    assert all(
        task.reference(row).items() <= record.items() for row, record in zip(rows, records, strict=True)
    )  # verify's
    assert json.loads(json.dumps(records)) == records
    assert all({"predicted", "expected"} <= record.keys() for record in records)
    assert task.selection in score(task.metrics, task.to_metric_inputs(records))
    right = [{**record, "predicted": record["expected"]} for record in records]
    best, found = (task.rank(score(task.metrics, task.to_metric_inputs(part))) for part in (right, records))
    assert best >= found
    json.dumps([task.answer(record) for record in records])


def test_a_bound_task_is_equal_after_a_round_trip_through_json(settings: dict[str, Any]) -> None:
    kind = TASKS[settings["kind"]]
    task = kind.model_validate(settings)
    rows = task.sample_rows()
    bound = task.from_training(rows).bind(rows)
    again = kind.model_validate_json(bound.model_dump_json())
    assert again == bound
    assert again.model_settings() == bound.model_settings()
    assert bound.bind(rows) == bound
    baseline = bound.constant_baseline(rows, rows)
    assert baseline is None or task.selection in baseline
