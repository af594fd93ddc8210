"""What every task promises, with each of its sample settings: a new task's file is found and tested unasked."""

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
    found: dict[str, Any] = request.param
    return found


@pytest.fixture(scope="module", params=BASES)
def patient(request: pytest.FixtureRequest, settings: dict[str, Any], tmp_path_factory: Any) -> Iterator[ProbeModel]:
    recipe = Recipe.model_validate(
        {"name": "contract", "model": request.param, "data": "none", "task": settings, "method": "full"}
    )
    folder: Path = tmp_path_factory.mktemp("base")
    try:
        yield make_probe_model(recipe, shapes()[request.param], folder, device=torch.device("cpu"), width=64)
    except UserError as error:
        pytest.skip(str(error))  # no such head


def test_the_loss_of_a_batch_is_the_sum_of_its_examples_losses_whatever_the_padding(patient: ProbeModel) -> None:
    task, model = patient.task, patient.base().model.eval()
    batches = [patient.examples, *([example] for example in patient.examples)]
    losses, counts = [], []
    with torch.no_grad():
        for examples in batches:
            batch = task.collate(examples, patient.padding_token)
            outputs = model(**task.model_inputs(batch, model))
            losses.append(float(task.loss(outputs, batch)))
            counts.append(int(task.count_targets(batch)))
            nothing = task.without_targets(batch)
            assert (float(task.loss(outputs, nothing)), int(task.count_targets(nothing))) == (0.0, 0)
    assert len({len(example) for example in patient.examples}) > 1
    assert losses[0] == pytest.approx(sum(losses[1:]), rel=1e-4)
    assert counts[0] == sum(counts[1:]) > 0


def test_records_are_json_and_the_metrics_take_them(patient: ProbeModel) -> None:
    from peftlab.metrics import score

    task, model = patient.task, patient.base().model.eval()
    batch = task.collate(patient.examples, patient.padding_token)
    with torch.no_grad():
        outputs = task.predict(model, batch, byte_tokenizer(model.config))
    records = task.merge(task.decode(outputs, patient.examples), patient.examples)
    rows = list({id(example.row): example.row for example in patient.examples}.values())
    assert all(
        task.reference(row).items() <= record.items() for row, record in zip(rows, records, strict=True)
    )  # verify's
    assert json.loads(json.dumps(records)) == records
    assert all({"predicted", "expected"} <= record.keys() for record in records)
    assert task.selection in score(task.metrics, task.to_metric_inputs(records))
    right = [{**record, "predicted": record["expected"]} for record in records]
    best, found = (score(task.metrics, task.to_metric_inputs(part))[task.selection] for part in (right, records))
    assert best >= found
    json.dumps([task.answer(record) for record in records])


def test_once_fitted_a_task_is_the_same_after_it_was_written_and_read(settings: dict[str, Any]) -> None:
    kind = TASKS[settings["kind"]]
    task = kind.model_validate(settings)
    rows = task.sample_rows()
    bound = task.from_training(rows).bind(rows)
    again = kind.model_validate_json(bound.model_dump_json())
    assert again == bound
    assert again.model_settings() == bound.model_settings()
    assert bound.bind(rows) == bound
    floor = bound.constant_baseline(rows, rows)
    assert floor is None or task.selection in floor
