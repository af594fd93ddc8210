"""`peftlab init`: a valid recipe for one's own file, or one line that says what is missing."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from peftlab.cli.task_guess import Candidate, guess
from peftlab.data.examples import Row
from peftlab.errors import UserError
from peftlab.recipe import load_recipe
from peftlab.tasks import TASKS
from tests.cli.processes import peftlab, refused

ROWS = [{"id": i, "words": ["Ada", f"No{i}"], "ner": ["B-PER", "O"], "source": "mail"} for i in range(60)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "My rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def init(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return peftlab("init", "--train", "My rows.jsonl", *words, folder=folder)


def test_task_and_columns_are_guessed_and_the_recipe_is_valid(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = init(folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("lora-my-rows.yaml: token_classification, lora; rows: ")
    monkeypatch.chdir(folder)
    recipe = load_recipe(folder / "lora-my-rows.yaml")
    assert recipe.data.columns == {"tokens": "words", "labels": "ner"}
    assert recipe.task.kind == "token_classification"
    assert sum(len(part) for part in recipe.rows().rows.values()) == 60
    text = (folder / "lora-my-rows.yaml").read_text()
    assert "# the task's field: the file's column" in text
    assert [path.name for path in sorted(folder.iterdir())] == ["My rows.jsonl", "lora-my-rows.yaml"]


def test_options_replace_guesses(folder: Path) -> None:
    words = ["--task", "token_classification", "--model", "someone/a-bert", "--method", "bitfit", "--name", "first"]
    assert init(folder, *words, "--output", "deep/there.yaml").returncode == 0
    text = (folder / "deep" / "there.yaml").read_text()
    for line in ("name: first", "model: someone/a-bert", "method: bitfit", "task: token_classification"):
        assert line in text


@pytest.mark.parametrize("odd", [{"text": "x y"}, {"text": "x y", "mood": None}, {"text": None, "mood": "good"}])
def test_a_bad_row_does_not_turn_labeled_texts_into_a_language_model(folder: Path, odd: dict[str, Any]) -> None:
    rows = [{"text": f"text {i}", "mood": ("good", "bad")[i % 2], "id": i} for i in range(30)]
    (folder / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, odd]))
    done = peftlab("init", "--train", "odd.jsonl", folder=folder)
    assert done.returncode == 0, done.stderr
    assert "written, but it cannot run yet:\nodd.jsonl:31: " in done.stdout
    assert "task: sequence_classification" in (folder / "lora-odd.yaml").read_text()


def test_unused_columns_and_untrainable_rows_are_reported(folder: Path) -> None:
    rows = [{"text": f"text {i}", "mood": i % 2 == 0, "id": f"id{i}"} for i in range(30)]
    (folder / "a b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = peftlab("init", "--train", "a b.jsonl", "--output", "a b.yaml", folder=folder)
    assert "sequence_classification" in done.stdout
    assert "unused columns: id\nnext: peftlab doctor 'a b.yaml', then" in done.stdout
    (folder / "one.jsonl").write_text("".join(json.dumps({**row, "mood": "good"}) + "\n" for row in rows))
    said = peftlab("init", "--train", "one.jsonl", folder=folder).stdout
    assert "written, but it cannot run yet:\ndata: every label is 'good': there is nothing to learn" in said


def test_a_recipe_is_not_overwritten_without_force(folder: Path) -> None:
    (folder / "lora-my-rows.yaml").write_text("precious")
    line = refused("init", "--train", "My rows.jsonl", folder=folder)
    assert line == "lora-my-rows.yaml: already exists; --force overwrites it"
    assert (folder / "lora-my-rows.yaml").read_text() == "precious"
    assert init(folder, "--force").returncode == 0
    assert (folder / "lora-my-rows.yaml").read_text() != "precious"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "init: --train is missing"),
        (["--train", "nowhere.jsonl"], "nowhere.jsonl: cannot be read: No such file"),
        (["--train", "odd.xyz"], "data: odd.xyz ends in '.xyz'; known are .jsonl"),
        (["--train", "broken.jsonl"], "broken.jsonl:1: not JSON"),
        (["--train", "numbers.jsonl"], "numbers.jsonl:1: has a, b, which fits no task ("),
        (["--train", "My rows.jsonl", "--task", "token_clasification"], "(did you mean 'token_classification'?)"),
        (["--train", "My rows.jsonl", "--method", "lorra"], "--method lorra: unknown (did you mean 'lora'?)"),
        (["--train", "My rows.jsonl", "--name", "../up"], "--name ../up: does not match"),
        (["--train", "My rows.jsonl", "--model", "a b"], "model: string should match pattern"),
        (["--train", "My rows.jsonl", "--column", "labels"], "--column labels: expected FIELD=COLUMN"),
        (["--train", "My rows.jsonl", "--column", "labels=nre"], "(did you mean 'ner'?)"),
        (["--train", "My rows.jsonl", "--method", "peft"], "method.type: missing"),
        (
            ["--train", "My rows.jsonl", "--output", "broken.jsonl/x.yaml"],
            "broken.jsonl/x.yaml: cannot be written: ",
        ),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(folder: Path, words: list[str], says: str) -> None:
    (folder / "broken.jsonl").write_text("{\n")
    (folder / "numbers.jsonl").write_text('{"a": 1, "b": 2}\n')
    assert says in refused("init", *words, folder=folder)
    assert list(folder.rglob("*.yaml")) == []


def test_bad_rows_are_reported_and_the_recipe_is_written(folder: Path) -> None:
    with (folder / "My rows.jsonl").open("a") as file:
        file.write('{"words": ["a", "b"], "ner": ["O"]}\n')
    done = init(folder)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "lora-my-rows.yaml: written, but it cannot run yet:",
        "My rows.jsonl:61: labels: 1 tags for 2 tokens",
    ]


def test_missing_options_are_prompted_for_in_a_terminal(folder: Path) -> None:
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "peftlab", "init"], cwd=folder, stdin=terminal, stdout=subprocess.PIPE, text=True
    )
    os.write(master, b"My rows.jsonl\n\n\nbitfit\n")  # task and model as proposed
    shown, _ = process.communicate(timeout=60)
    os.close(master)
    os.close(terminal)
    assert process.returncode == 0
    assert "Task (" in shown
    assert "[sentence-transformers/all-MiniLM-L6-v2]" in shown
    assert "method: bitfit" in (folder / "bitfit-my-rows.yaml").read_text()


def test_it_imports_no_torch(folder: Path) -> None:
    code = (
        "import sys; sys.argv = ['peftlab', 'init', '--train', 'My rows.jsonl']\n"
        "from peftlab.cli.app import app\n"
        "try: app()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=folder, timeout=60).returncode == 0


def fit(**columns: Any) -> Candidate:
    return guess([Row("mine:1", columns)] * 9, {}, None)


@pytest.mark.parametrize(
    ("columns", "kind", "settings", "mapping"),
    [
        ({"tokens": ["a"], "ner_tags": ["B-X"], "id": "7"}, "token_classification", {}, {"labels": "ner_tags"}),
        ({"tokens": ["a"], "pos": ["NN"]}, "token_classification", {"scheme": "plain"}, {"labels": "pos"}),
        ({"review": "fine", "stars": "5"}, "sequence_classification", {}, {"text": "review", "label": "stars"}),
        ({"id": 3, "text": "fine", "label": 1}, "sequence_classification", {}, {}),
        ({"text": "fine", "score": 0.5}, "sequence_classification", {"problem": "regression"}, {"label": "score"}),
        ({"text": "fine", "labels": ["a"]}, "sequence_classification", {"problem": "multi_label"}, {"label": "labels"}),
        ({"story": 1, "text": "Ada sang."}, "causal_lm", {"form": "text"}, {}),
        (
            {"prompt": "Who?", "output": "Ada."},
            "causal_lm",
            {"form": "instruction"},
            {"instruction": "prompt"},
        ),
        (
            {"conversations": [{"role": role, "content": "Ada."} for role in ("user", "assistant")]},
            "causal_lm",
            {"form": "chat"},
            {"messages": "conversations"},
        ),
        ({"article": "Ada sang.", "headline": "Song"}, "seq2seq", {}, {"source": "article", "target": "headline"}),
        (
            {"title": "Ada", "question": "Who?", "passage": "Ada.", "answers": {"text": ["Ada"], "answer_start": [0]}},
            "question_answering",
            {},
            {"context": "passage"},
        ),
        ({"prompt": "Who?", "choices": ["Ada", "Max"], "answer": 1}, "multiple_choice", {}, {}),
        (
            {"question": "Who?", "subject": "math", "choices": ["Ada", "Max"], "answer": "A"},
            "multiple_choice",
            {},
            {"prompt": "question"},
        ),
        (
            {"question": "Who?", "id": "7", "options": ["Ada", "Max"], "answerKey": "Max"},
            "multiple_choice",
            {},
            {"prompt": "question", "choices": "options", "answer": "answerKey"},
        ),
        (
            {"question": "Who?", "answer": "Ada"},
            "causal_lm",
            {"form": "instruction"},
            {"instruction": "question", "output": "answer"},
        ),
        ({"Text": "fine", "LABEL": "b", "x": "y"}, "sequence_classification", {}, {"text": "Text", "label": "LABEL"}),
        (
            {"premise": "a", "hypothesis": "b", "label": "yes"},
            "sequence_classification",
            {},
            {"text": "premise", "text_pair": "hypothesis"},
        ),
    ],
)  # fmt: skip
def test_rows_determine_task_settings_and_columns(
    columns: dict[str, Any], kind: str, settings: dict[str, Any], mapping: dict[str, str]
) -> None:
    found = fit(**columns)
    renamed = {field: column for field, column in found.columns.items() if field != column}
    assert (found.kind, found.settings, renamed) == (kind, settings, mapping)


def test_options_come_first_and_unmatched_rows_are_an_error() -> None:
    row = Row("mine:1", {"x": "fine", "y": "glad", "z": "b"})
    assert guess([row], {"text": "x", "label": "y"}, "sequence_classification").columns == {
        "text": "x", "label": "y"
    }  # fmt: skip
    with pytest.raises(UserError, match="has x, y, z, which fits no task"):
        guess([row], {}, "sequence_classification")
    with pytest.raises(UserError, match="has x, y, z, which fits no task"):
        guess([row], {"tokens": "x"}, None)


def test_ambiguous_rows_are_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "others", TASKS["sequence_classification"])
    with pytest.raises(UserError, match="which may be sequence_classification, others; --task says which"):
        fit(text="fine", label="glad")
    assert guess([Row("mine:1", {"text": "fine", "label": "b"})], {}, "others").kind == "others"


def test_a_generated_recipe_of_each_kind_of_rows_is_valid(tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    table.write_text("review,mood\n" + "".join(f"text {i},{'good' if i % 2 else 'bad'}\n" for i in range(90)))
    done = peftlab("init", "--train", "mine.csv", folder=tmp_path)
    assert done.stdout.startswith("lora-mine.yaml: sequence_classification, lora; rows: ")


@pytest.mark.parametrize(("count", "problem"), [(2, "single_label"), (30, "regression")])
@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_few_integral_floats_are_classes_and_this_is_reported(
    ending: str, count: int, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": f"line {i}", "label": float(i % count)} for i in range(90)]
    lines = [json.dumps(row) if ending == "jsonl" else f"{row['text']},{row['label']}" for row in rows]
    (tmp_path / f"mine.{ending}").write_text("\n".join(["text,label"] * (ending == "csv") + lines))
    said = peftlab("init", "--train", f"mine.{ending}", folder=tmp_path).stdout
    assert said.startswith("lora-mine.yaml: sequence_classification, lora; rows: ")
    assert ("label: few distinct whole numbers, read as classes; for numbers set task.problem: regression" in said) is (
        count == 2
    )
    recipe = load_recipe(tmp_path / "lora-mine.yaml")
    assert recipe.task.model_dump()["problem"] == problem


def test_tags_of_an_unknown_scheme_are_reported(tmp_path: Path) -> None:
    (tmp_path / "mine.conll").write_text("".join(f"Ada PER\nmet O\nNo{i} O\n\n" for i in range(60)))
    done = peftlab("init", "--train", "mine.conll", folder=tmp_path)
    assert "to score entities, use tags B-x and I-x" in done.stdout


def test_a_generated_recipe_of_choices_is_valid(tmp_path: Path) -> None:
    rows = [{"question": f"Is it {i}?", "choices": [f"yes, {i}", "no"], "answer": "AB"[i % 2]} for i in range(90)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = peftlab("init", "--train", "mine.jsonl", folder=tmp_path)
    assert done.stdout.startswith("lora-mine.yaml: multiple_choice, lora; rows: ")


@pytest.mark.parametrize(
    ("scheme", "tags"),
    [
        ("iob2", "B-PER I-PER O B-LOC"),
        ("iob1", "I-PER I-PER O I-LOC"),
        ("iobes", "B-PER E-PER O S-LOC"),
        ("bilou", "B-PER L-PER O U-LOC"),
        ("plain", "NN NN VB NN"),
    ],
)
def test_the_scheme_of_tags_is_recognized_despite_bad_and_empty_rows(scheme: str, tags: str) -> None:
    rows = [Row(f"mine:{i}", {"tokens": list("abcd"), "tags": tags.split()}) for i in range(30)]
    rows += [Row("mine:31", {"tokens": list("abcd"), "tags": ["O"] * 4})] * (0 if scheme == "plain" else 60)
    rows += [Row("mine:92", {"tokens": list("abcd"), "tags": ["O", "I-PER", "E-PER", ""]})]
    found = guess(rows, {}, None)
    assert (found.kind, found.settings.get("scheme", "iob2")) == ("token_classification", scheme)


@pytest.mark.parametrize(
    ("scores", "problem"),
    [
        (["0.5", "1", " -2.25"], "regression"),
        (["1", "2", "3"], "single_label"),  # stars
        (["0.5", "high", "low"], "single_label"),
        (["0.0", "1.0", "2.0"], "single_label"),
    ],
)
def test_numbers_in_a_text_table_are_recognized(scores: list[str], problem: str, tmp_path: Path) -> None:
    (tmp_path / "mine.tsv").write_text("text\tscore\n" + "".join(f"line {i}\t{scores[i % 3]}\n" for i in range(90)))
    done = peftlab("init", "--train", "mine.tsv", folder=tmp_path)
    assert done.stdout.startswith("lora-mine.yaml: sequence_classification, lora; rows: ")
    assert load_recipe(tmp_path / "lora-mine.yaml").task.model_dump()["problem"] == problem
