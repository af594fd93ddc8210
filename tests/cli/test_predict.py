"""`peftlab predict`: text, lines and rows."""

import json
import shutil
import subprocess
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from peftlab.cli.inputs import given_texts
from tests.cli.processes import refused, refused_by
from tests.commands import Server


def test_predict_without_a_run_is_one_line(server: Server, tmp_path: Path) -> None:
    assert "no tuned model here" in refused_by(server, "predict", tmp_path, "some text")


@pytest.mark.parametrize(
    ("text", "says"), [("missing.txt", "cannot be read: No such file"), (".", "cannot be read: Is a directory")]
)
def test_a_file_to_predict_that_cannot_be_read_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    assert says in refused("predict", tmp_path, text)


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
