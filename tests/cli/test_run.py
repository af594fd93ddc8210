"""`peftlab run`: results, and one line for every error."""

import json
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from peftlab.recipe import Recipe
from tests.cli.processes import ROOT, peftlab, refused, refused_by
from tests.commands import Server


def test_a_misspelled_recipe_is_one_line(tmp_path: Path) -> None:
    assert (
        refused("run", "recipes/lora-nerr.yaml") == "recipes/lora-nerr.yaml: no such recipe (did you mean 'lora-ner'?)"
    )


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
        "recipe", "model", "data", "labels", "method", "device", "reach", "reach", "validation", "validation",
        "validation", "test", "baseline", "baseline", "parameters", "time", "saved", "next",
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


def test_force_runs_again(
    server: Server, first_run: tuple[subprocess.CompletedProcess[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(first_run[1], tmp_path / "cli"))
    (result,) = folder.glob("runs/mine/*/result.json")
    before = json.loads(result.read_text())
    again = server.inside(folder).run("run", "mine.yaml", "--set", "quantization=nf4", "--force")
    assert again.code == 0, again.err
    after = json.loads(result.read_text())
    assert (after["started"], after["metrics"]) != (before["started"], None)
    assert after["metrics"] == before["metrics"]
    visible = [path.name for path in result.parent.parent.iterdir() if not path.name.startswith(".")]
    assert visible == [result.parent.name]


def test_changed_data_are_another_run_and_missing_ones_do_not_hide_the_result(server: Server, tmp_path: Path) -> None:
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
    (folder,) = (path.parent for path in tmp_path.rglob("result.json"))
    result = json.loads((folder / "result.json").read_text())
    del result["recipe"]["data"]["fingerprints"]  # as before local files were named by their contents
    (folder / "result.json").write_text(json.dumps(result))
    by_paths = Recipe.from_record(result["recipe"]).digest
    earlier = folder.rename(folder.with_name(by_paths))
    assert f"{earlier.name} already holds this run" in server.run("run", "mine.yaml", *output).out
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    assert "the data of this run changed since" in refused_by(server, "run", "mine.yaml", *output)
    (tmp_path / "mine.jsonl").unlink()
    shown = server.run("run", "mine.yaml", *output).out.splitlines()
    assert shown[0].endswith("already holds this run (--force runs it again)")
    assert shown[1] == "data       mine.jsonl no longer exists; changes to it cannot be detected"
    assert shown[2].startswith("validation entity_f1 ")


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
