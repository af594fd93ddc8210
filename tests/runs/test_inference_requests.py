"""`peftlab predict`: scores of a labeled file, probabilities of all labels, a base that was moved."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from peftlab.data.files import read_file
from peftlab.errors import UserError
from peftlab.methods.lora import Lora
from peftlab.models.model import ModelFiles
from peftlab.recipe import load_recipe
from peftlab.results.result_file import read_result
from peftlab.runs import inference
from peftlab.runs.console import ConsoleReporter
from peftlab.runs.inference import Request, answers, labeled_rows
from peftlab.runs.run import run
from peftlab.tasks.sequence_classification import SequenceClassification
from peftlab.training.train_log import Evaluation

WORDS = {"good": ("fine", "great", "lovely", "warm"), "bad": ("dull", "poor", "awful", "cold")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, minilm: ModelFiles) -> Path:
    folder = tmp_path_factory.mktemp("requests")
    shutil.copytree(minilm.folder, folder / "base")
    rows = [
        {"text": f"a {word} film, number {i}", "label": label}
        for i in range(8) for label, words in WORDS.items() for word in words
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.yaml").write_text(
        f"model: {folder / 'base'}\ntask: sequence_classification\ndata: {{train: rows.jsonl}}\n"
        "method: {kind: lora, rank: 4}\ntraining: {steps: 4, batch_tokens: 64}\n"
    )
    run(load_recipe(folder / "mine.yaml"), folder / "out")
    return folder


def test_a_labeled_file_is_scored_as_in_training(finished: Path) -> None:
    result = read_result(finished / "out")
    rows = load_recipe(finished / "mine.yaml").rows().rows["test"]
    path = finished / "test.jsonl"
    path.write_text("".join(json.dumps(dict(row.fields)) + "\n" for row in rows))
    request = Request(scored=True)
    predicted = list(answers(finished / "out", lambda task: labeled_rows(task, read_file(path), {}), None, request))
    assert len(predicted) == len(rows)
    assert request.metrics["accuracy"] == pytest.approx(result.metrics["test"]["accuracy"])
    path.write_text('{"text": "no label"}\n')
    with pytest.raises(UserError, match=r"test.jsonl:1: no 'label', which --score needs; it has: text"):
        list(answers(finished / "out", lambda task: labeled_rows(task, read_file(path), {}), None, request))


def test_every_label_has_its_probability_the_most_probable_first(finished: Path) -> None:
    def one(top: int) -> dict[str, float]:
        rows = inference.rows_from_lines
        (answer,) = answers(finished / "out", lambda task: rows(task, ["a fine film"], "text"), None, Request(top=top))
        assert next(iter(answer["scores"])) == answer["label"]
        scores: dict[str, float] = answer["scores"]
        return scores

    assert sum(one(2).values()) == pytest.approx(1, abs=1e-5)
    assert list(one(2)) == sorted(one(2), key=one(2).__getitem__, reverse=True)
    assert len(one(1)) == 1


def test_predictions_take_batches_no_larger_than_those_of_training(finished: Path, tmp_path: Path) -> None:
    assert inference.trained_batch_tokens(finished / "out") == 64
    assert inference.trained_batch_tokens(tmp_path) == inference.BATCH_TOKENS


def test_a_base_that_was_moved_is_named_with_its_place_and_the_cure(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(finished / "out", folder)
    card = folder / "adapter" / "peftlab.json"
    card.write_text(card.read_text().replace(str(finished / "base"), str(tmp_path / "old" / "base")))
    request = Request()
    with pytest.raises(UserError) as error:
        list(answers(folder, lambda task: inference.rows_from_lines(task, ["a"], "text"), None, request))
    assert f"{tmp_path / 'old' / 'base'}: no such folder (looked for " in str(error.value)
    assert f"write its new place as model.id into {card}" in str(error.value)
    assert "\n" not in str(error.value)
    card.write_text(card.read_text().replace(str(tmp_path / "old" / "base"), str(finished / "base")))
    assert len(list(answers(folder, lambda task: inference.rows_from_lines(task, ["a"], "text"), None, request))) == 1


def test_a_run_as_good_as_its_baseline_says_so(finished: Path) -> None:
    from peftlab.results.summary import summary

    result = read_result(finished / "out")
    lucky = {**result.metrics, "test": {**result.metrics["test"], "accuracy": 0.55}}
    level = {**result.constant_baseline, "test": {**result.constant_baseline["test"], "accuracy": 0.5}}
    lines = dict(summary(result.model_copy(update={"metrics": lucky, "constant_baseline": level}), "guesses"))
    assert "test: accuracy 0.5500 is within noise" in lines["no gain"]
    better = {**result.metrics, "test": {**result.metrics["test"], "accuracy": 1.0}, "validation": {"accuracy": 1.0}}
    assert "no gain" not in dict(
        summary(result.model_copy(update={"metrics": better, "constant_baseline": level}), "guesses")
    )


def test_the_console_says_early_that_nothing_is_learned(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(scores: list[float]) -> str:
        workload: Any = SimpleNamespace(task=SequenceClassification(), method=Lora())
        state: Any = SimpleNamespace(workload=workload)
        console = ConsoleReporter()
        console.baseline = {"accuracy": 0.5}
        console.on_train_begin(state)
        for step, score in enumerate(scores, start=1):
            console.on_evaluation(Evaluation(step, 1.0, 0.7, {"accuracy": score}, step != 1, 0.6), step == 2)
        return capsys.readouterr().out

    level = shown([0.5, 0.4, 0.5])
    assert level.count("none of 2 evaluations is better than the baseline (accuracy 0.5000") == 1
    assert "train loss 0.7000  loss 0.6000  accuracy 0.4000  (best accuracy)" in level
    assert "accuracy 0.5000  (cannot be the best: lora has not reached its final size)" in level
    assert "no gain" not in shown([0.6, 0.4])
