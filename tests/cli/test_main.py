"""The command line as a person meets it: light where it can be, quiet, one line for bad input, exit code 2."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from peftlab.cli.inputs import given_texts
from tests.commands import Server

ROOT = Path(__file__).parents[2]


def peftlab(*words: str | Path, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "peftlab", *map(str, words)],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def refused(*words: str | Path, folder: Path = ROOT, **environment: str) -> str:
    """The one line that a command with exit code 2 prints."""
    done = peftlab(*words, folder=folder, **environment)
    assert done.returncode == 2, done.stderr
    return only_line(done.stderr)


def refused_by(server: Server, *words: str | Path, **environment: str) -> str:
    """The same from a forked process, for commands that import torch."""
    done = server.run(*words, **environment)
    assert done.code == 2, done.err
    return only_line(done.err)


def only_line(stderr: str) -> str:
    assert "Traceback" not in stderr
    (line,) = stderr.splitlines()
    return line


@pytest.mark.parametrize(
    "words", [["--help"], ["list"], ["schema"], ["validate", "recipes/lora-ner.yaml"]], ids=" ".join
)
def test_a_command_that_does_not_train_imports_no_heavy_library(words: list[str]) -> None:
    code = f"""
import sys
sys.argv = ["peftlab", *{words!r}]
from peftlab.cli.app import app
try:
    app()
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = {{"torch", "transformers", "peft", "datasets", "evaluate", "numpy", "scipy", "sklearn"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_list_shows_every_component_and_what_is_cached(tmp_path: Path) -> None:
    shown = peftlab("list").stdout
    for word in ("lora-ner", "qlora-ner", "full", "nf4", "token_classification", "entity_f1", "eriktks/conll2003"):
        assert word in shown
    assert "83.5 MB to fetch" in peftlab("list", PEFTLAB_CACHE=str(tmp_path)).stdout


def test_validate_checks_every_file_and_reports_the_invalid_ones(recipe_file: Path) -> None:
    wrong = recipe_file.with_name("wrong.yaml")
    wrong.write_text(recipe_file.read_text().replace("rank: 4", "rnak: 4"))
    done = peftlab("validate", recipe_file, wrong, recipe_file)
    assert done.returncode == 2
    assert done.stdout.count(": valid (lora, none, ") == 2
    assert done.stderr.splitlines() == [f"{wrong}:9: method.rnak: unknown key (did you mean 'rank'?); " + KEYS]


KEYS = "known are kind, rank, alpha, dropout, targets, rank_stabilized, weight_decomposed, initialization, b_rate_ratio"


def test_an_interrupt_during_imports_prints_no_traceback() -> None:
    slow = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, *rest):
        if name == "peftlab.cli.app":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
import peftlab.__main__
"""
    done = subprocess.run([sys.executable, "-c", slow], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_a_closed_pipe_is_no_error() -> None:
    """`peftlab schema | head`"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = subprocess.Popen([sys.executable, "-m", "peftlab", "schema"], cwd=ROOT, **pipes)
    assert command.stdout is not None
    assert command.stderr is not None
    command.stdout.close()
    assert command.stderr.read() == b""
    assert command.wait() == 1


def test_a_misspelled_recipe_is_one_line(tmp_path: Path) -> None:
    assert (
        refused("run", "recipes/lora-nerr.yaml") == "recipes/lora-nerr.yaml: no such recipe (did you mean 'lora-ner'?)"
    )


def test_a_dry_run_refuses_options_that_write(tmp_path: Path) -> None:
    line = refused("bench", "benchmarks/quick", "--dry-run", "--adopt", tmp_path)
    assert line == "--dry-run and --adopt: use one at a time"


def test_an_infinite_process_timeout_is_refused(recipe_file: Path) -> None:
    done = peftlab("run", recipe_file, "--process-timeout", "inf")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "Invalid value for '--process-timeout'" in done.stderr


def test_an_output_that_cannot_be_written_is_one_line(server: Server, recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file where a folder should be")
    line = refused_by(server, "run", recipe_file, "--output", tmp_path / "occupied")
    assert line.startswith("--output ")
    assert "cannot be written: Not a directory" in line


def test_no_network_and_nothing_cached_is_one_line(server: Server, recipe_file: Path, tmp_path: Path) -> None:
    nothing = {"PEFTLAB_CACHE": str(tmp_path / "cache"), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    line = refused_by(server, "run", recipe_file, "--output", tmp_path / "runs", **nothing)
    assert "datamade/usaddress" in line
    assert "usaddress 0.5.16" in line
    assert list((tmp_path / "runs" / "mine").glob("[!.]*")) == []


def test_an_unknown_model_is_one_line_with_the_nearest_known_one(
    server: Server, recipe_file: Path, tmp_path: Path
) -> None:
    line = refused_by(
        server, "run", recipe_file, "--output", tmp_path, "--set", "model=sentence-transformers/all-MiniLM-L6-v3"
    )  # fmt: skip
    assert "(did you mean 'sentence-transformers/all-MiniLM-L6-v2'?)" in line


def test_predict_without_a_run_is_one_line(server: Server, tmp_path: Path) -> None:
    assert "no tuned model here" in refused_by(server, "predict", tmp_path, "some text")


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    from tests.conftest import RECIPE

    folder = tmp_path_factory.mktemp("cli")
    (folder / "mine.yaml").write_text(RECIPE)
    # No proxy answers there: whatever asked the network would fail.
    nowhere = {"HF_HUB_OFFLINE": "0", "HTTPS_PROXY": "http://127.0.0.1:9", "PIP_NO_INDEX": "1"}
    return peftlab("run", "mine.yaml", "--set", "quantization=nf4", folder=folder, **nowhere), folder


def test_a_piped_run_prints_plain_lines_and_no_library_output(
    first_run: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, _ = first_run
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert "\r" not in done.stdout
    labels = [line[:11].strip() for line in done.stdout.splitlines() if line and not line.startswith("step ")]
    assert labels == [
        "recipe", "model", "data", "labels", "method", "device", "validation", "validation",
        "validation", "test", "baseline", "baseline", "parameters", "time", "saved",
    ]  # fmt: skip
    assert "on a CPU this saves memory, not time" in done.stdout


def test_a_second_call_prints_the_result_without_running_again(
    first_run: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, folder = first_run
    (result,) = folder.glob("runs/mine/*/result.json")
    before = result.stat().st_mtime_ns
    again = peftlab("run", "mine.yaml", "--set", "quantization=nf4", folder=folder)
    assert again.returncode == 0
    assert "already holds this run" in again.stdout
    test_line = next(line for line in done.stdout.splitlines() if line.startswith("test "))
    assert test_line in again.stdout
    assert result.stat().st_mtime_ns == before


def test_force_runs_again(server: Server, first_run: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    _, folder = first_run
    (result,) = folder.glob("runs/mine/*/result.json")
    before = json.loads(result.read_text())
    again = server.inside(folder).run("run", "mine.yaml", "--set", "quantization=nf4", "--force")
    assert again.code == 0, again.err
    after = json.loads(result.read_text())
    assert (after["started"], after["metrics"]) != (before["started"], None)
    assert after["metrics"] == before["metrics"]
    visible = [path.name for path in result.parent.parent.iterdir() if not path.name.startswith(".")]
    assert visible == [result.parent.name]


def test_changed_data_do_not_reuse_an_old_result(server: Server, tmp_path: Path) -> None:
    rows = [{"tokens": ["12", "Main", f"S{i}"], "labels": ["B-N", "B-S", "I-S"]} for i in range(60)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(
        "model: sentence-transformers/all-MiniLM-L6-v2\ntask: token_classification\ndata: {train: mine.jsonl}\n"
        "method: lora\ntraining: {steps: 1}\n"
    )
    output = ("--output", "runs[/x]")  # what looks like markup is none
    server = server.inside(tmp_path)
    assert "runs[/x]/mine/" in server.run("run", "mine.yaml", *output).out
    assert "already holds this run" in server.run("run", "mine.yaml", *output).out
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    line = refused_by(server, "run", "mine.yaml", *output)
    assert "the data of this run changed since" in line
    (tmp_path / "mine.jsonl").unlink()
    shown = server.run("run", "mine.yaml", *output).out.splitlines()
    assert shown[0].endswith("already holds this run (--force runs it again)")
    assert shown[1] == "data       mine.jsonl no longer exists; changes to it cannot be detected"
    assert shown[2].startswith("validation entity_f1 ")


@pytest.mark.parametrize(
    ("text", "says"), [("missing.txt", "cannot be read: No such file"), (".", "cannot be read: Is a directory")]
)
def test_a_file_to_predict_that_cannot_be_read_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    assert says in refused("predict", tmp_path, text)


@pytest.mark.slow  # tests/faults has the same with a fault injected into a forked process
def test_a_full_disk_is_one_line_and_leaves_nothing(recipe_file: Path, tmp_path: Path) -> None:
    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    done = subprocess.run(
        [sys.executable, "-m", "peftlab", "run", str(recipe_file), "--output", str(tmp_path / "runs")],
        cwd=ROOT, capture_output=True, text=True, timeout=300, preexec_fn=little_room,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "cannot be written: " in done.stderr
    assert list((tmp_path / "runs" / "mine").glob("[!.]*")) == []


def test_predict_reads_text_file_and_standard_input_alike(
    first_run: tuple[subprocess.CompletedProcess[str], Path], tmp_path: Path, server: Server
) -> None:
    _, folder = first_run
    (run,) = folder.glob("runs/mine/[!.]*")
    text = "123 Main Street"
    (tmp_path / "lines.txt").write_text(f"{text}\n\n{text}\n")
    one = json.loads(server.run("predict", run, text).out)
    assert (one.pop("line"), one["words"]) == (1, text.split())
    both = [json.loads(line) for line in server.run("predict", run, tmp_path / "lines.txt").out.splitlines()]
    assert both == [{"line": 1, **one}, {"line": 3, **one}]


def test_predict_reads_a_file_of_rows_as_training_does(
    first_run: tuple[subprocess.CompletedProcess[str], Path], tmp_path: Path, server: Server
) -> None:
    _, folder = first_run
    (run,) = folder.glob("runs/mine/[!.]*")
    renamed = tmp_path / "renamed"  # as of a run whose data called its words "sentence"
    shutil.copytree(run, renamed)
    result = json.loads((run / "result.json").read_text())
    result["recipe"]["data"]["columns"] = {"tokens": "sentence"}
    (renamed / "result.json").write_text(json.dumps(result))
    words = ["123", "Main", "Street"]
    one = json.loads(server.run("predict", run, " ".join(words)).out)
    del one["line"]
    rows = [{"tokens": words, "labels": ["O", "O", "O"]}, {"tokens": " ".join(words)}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rows.csv").write_text('labels,sentence\nO,"123 Main\nStreet"\nO,123 Main Street\n')
    (tmp_path / "rows.conll").write_text("123 O\nMain O\nStreet O\n\n123 O\nMain O\nStreet O\n")
    pyarrow.parquet.write_table(pyarrow.table({"tokens": [words, words]}), tmp_path / "rows.parquet")
    for file, trained, lines in (
        ("rows.jsonl", run, [1, 2]),
        ("rows.csv", renamed, [2, 4]),
        ("rows.conll", run, [1, 5]),
        ("rows.parquet", run, [1, 2]),
    ):
        found = [json.loads(line) for line in server.run("predict", trained, tmp_path / file).out.splitlines()]
        assert found == [{"line": line, **one} for line in lines], file


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"token": ["a"]}', "rows.jsonl:1: no 'tokens' (did you mean 'token'?); it has: token"),
        ('{"tokens": ["a"]}\n{"tokens": 5}', "rows.jsonl:2: tokens: a list was expected, found '5'"),
        ('{"tokens": ["a"]}\n{"tokens"', "rows.jsonl:2: not JSON"),
    ],
)
def test_invalid_rows_are_one_line(
    first_run: tuple[subprocess.CompletedProcess[str], Path], tmp_path: Path, server: Server, content: str, says: str
) -> None:
    (run,) = first_run[1].glob("runs/mine/[!.]*")
    (tmp_path / "rows.jsonl").write_text(content)
    done = server.run("predict", run, tmp_path / "rows.jsonl")
    assert (done.code, done.out) == (2, "")
    assert says in done.err


def test_a_text_longer_than_a_file_name_is_read_as_text() -> None:
    question = json.dumps({"question": "Where?", "context": "It rained. " * 60})
    assert given_texts(question) == ([question], "text")
    assert given_texts("word" * 100) == (["word" * 100], "text")
