"""Two real processes over gloo give what one gives."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Server

ROOT = Path(__file__).parents[2]
SETTINGS = ("data.validation_examples=13", "training.accumulation=2")  # 13: the last batch does not divide by two


def result_of(server: Server, recipe: Path, output: Path, processes: int, *options: str) -> dict[str, Any]:
    overrides = [word for setting in (*SETTINGS, *options) for word in ("--set", setting)]
    run = server.run_two if processes == 2 else lambda *words: [server.run(*words)]
    for done in run("run", recipe, "--output", output, *overrides):
        assert done.code == 0, done.err
    (path,) = output.rglob("result.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_two_processes_give_the_losses_metrics_and_result_of_one(
    server: Server, recipe_file: Path, tmp_path: Path
) -> None:
    one = result_of(server, recipe_file, tmp_path / "one", 1)
    two = result_of(server, recipe_file, tmp_path / "two", 2)
    assert two["environment"]["processes"] == 2
    assert two["metrics"] == one["metrics"]
    assert two["curve"]["losses"] == pytest.approx(one["curve"]["losses"], abs=1e-5)
    assert two["cost"]["tokens"] == one["cost"]["tokens"]
    assert two["cost"]["optimizer_steps"] == one["cost"]["optimizer_steps"]


QUESTIONS = """\
model: sentence-transformers/all-MiniLM-L6-v2
task: {kind: question_answering, max_length: 96}
data: {id: rajpurkar/squad/validation-1000, group: title, train_examples: 12, test_examples: 7}
method: {kind: lora, rank: 4, targets: attention}
training: {steps: 2, evaluate_every: 2, batch_examples: 6, learning_rate: 5e-3, precision: float32}
"""


@pytest.mark.slow
def test_two_processes_answer_questions_over_windows_as_one(server: Server, tmp_path: Path) -> None:
    (tmp_path / "qa.yaml").write_text(QUESTIONS)
    one = result_of(server, tmp_path / "qa.yaml", tmp_path / "one", 1)
    two = result_of(server, tmp_path / "qa.yaml", tmp_path / "two", 2)
    validation = one["splits"]["validation"]
    assert validation["examples"] == 13
    assert validation["tokens"] > 13 * 96  # in windows
    assert two["metrics"] == one["metrics"]
    spoken = [
        [json.loads(line)["predicted"] for line in next((tmp_path / run).rglob("predictions.jsonl")).open()]
        for run in ("one", "two")
    ]
    assert spoken[0] == spoken[1]
    assert len(spoken[0]) == 13 + 7


@pytest.mark.slow
def test_two_processes_train_with_perturbation_and_layer_decay_as_one(
    server: Server, recipe_file: Path, tmp_path: Path
) -> None:
    options = ("training.adversarial=1.0", "training.embedding_noise=5", "training.layer_decay=0.8")
    one = result_of(server, recipe_file, tmp_path / "one", 1, *options)
    two = result_of(server, recipe_file, tmp_path / "two", 2, *options)
    plain = result_of(server, recipe_file, tmp_path / "plain", 1)
    assert two["metrics"] == one["metrics"]
    assert two["curve"]["losses"] == pytest.approx(one["curve"]["losses"], abs=1e-5)
    assert plain["curve"]["losses"] != pytest.approx(one["curve"]["losses"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["cpu-2", "cpu-2-fsdp2", "zero-2", "zero-3"])
def test_accelerate_launch_with_a_shipped_config_starts_two_processes(
    config: str, recipe_file: Path, tmp_path: Path
) -> None:
    done = launched(recipe_file, tmp_path, "--config_file", str(ROOT / "recipes" / "accelerate" / f"{config}.yaml"))
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.rglob("result.json")
    assert json.loads(path.read_text())["environment"]["processes"] == 2
    assert "cpu, 2 processes" in done.stdout


@pytest.mark.slow
def test_a_launch_of_fewer_processes_than_requested_is_refused(recipe_file: Path, tmp_path: Path) -> None:
    done = launched(recipe_file, tmp_path, "--cpu", "--num_processes", "2")
    assert done.returncode != 0
    assert "the launcher asked for 2 processes, but only 1 started" in done.stderr
    assert list(tmp_path.rglob("result.json")) == []


def launched(recipe: Path, output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(Path(sys.executable).with_name("accelerate"), "launch", *options),
            *("-m", "peftlab", "run", recipe, "--output", output / "runs"),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=output,
        capture_output=True,
        text=True,
        timeout=300,
    )
