"""`peftlab init` recognizes the forms in which people have their data, and writes a recipe that reads them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftlab.cli.file_guess import read_sample
from peftlab.cli.recipe_draft import Draft, write
from peftlab.cli.task_guess import guess, valid_rows
from peftlab.errors import UserError
from peftlab.recipe import load_recipe

TEXTS = [f"Ein Café, sehr fein, Nr. {i}" for i in range(40)]
ANSWER = {"question": "Who?", "context": "In Ulm, Ada sang.", "answer_text": "Ada", "answer_start": 8}


def draft(folder: Path, *names: str, task: str | None = None) -> dict[str, Any]:
    """The `data` and `task` of the written recipe, which can read its rows."""
    sample = read_sample([folder / name for name in names])
    rows = valid_rows(sample)
    made = Draft(task=guess(rows, {}, task), sample=sample, rows=len(rows), model="x/y", method="lora", name="mine")
    lines = write(made, folder / "mine.yaml", force=True)
    assert lines[-1].startswith("next: "), lines
    recipe = load_recipe(folder / "mine.yaml")
    given = recipe.data.model_dump(exclude_defaults=True, exclude={"kind", "train", "validation_share", "test_share"})
    return {"kind": recipe.task.kind, "task": recipe.task.model_dump(exclude_defaults=True), "data": given}


def csv(separator: str = ",", quote: str = "", encoding: str = "utf-8") -> Callable[[str], bytes]:
    def content(head: str) -> bytes:
        lines = [f"{quote}{text}{quote}{separator}{('gut', 'schlecht')[i % 2]}" for i, text in enumerate(TEXTS)]
        return "\n".join([*([head] if head else []), *lines, ""]).encode(encoding)

    return content


@pytest.mark.parametrize(
    ("name", "content", "data"),
    [
        ("a.csv", csv(";", encoding="windows-1252")("text;label"), {"encoding": "windows-1252"}),
        ("a.csv", csv("\t", encoding="utf-16-le")("text\tlabel"), {"encoding": "utf-16-le"}),
        ("a.csv", csv(";", quote='"')(""), {"names": ("text", "label")}),
        ("a.csv", csv(quote='"')(""), {"names": ("text", "label")}),
        ("a.tsv", csv("\t", quote='"')("text\tlabel"), {"format": "csv"}),
        ("a.tsv", csv("\t")("text\tlabel"), {}),
    ],
)
def test_the_form_of_a_table_is_recognized(name: str, content: bytes, data: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert draft(tmp_path, name)["data"] == data


def jsonl(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_column_for_each_label_is_recognized(tmp_path: Path) -> None:
    jsonl(
        tmp_path / "a.jsonl", [{"id": i, "comment": f"t{i}", "toxic": i % 2, "threat": i % 3 // 2} for i in range(40)]
    )
    found = draft(tmp_path, "a.jsonl")
    assert found["data"] == {"columns": {"text": "comment"}, "labels_from": ("toxic", "threat")}
    assert (found["task"]["problem"], found["task"]["labels"]) == ("multi_label", ["toxic", "threat"])


def test_nested_values_are_found(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [{"translation": {"en": f"cat {i}", "de": f"Katze {i}"}} for i in range(40)])
    assert draft(tmp_path, "a.jsonl")["data"]["columns"] == {"source": "translation.en", "target": "translation.de"}


def test_two_text_files_are_parallel(tmp_path: Path) -> None:
    for name in ("a.en", "a.de"):
        (tmp_path / name).write_text("".join(f"{name} {i}\n" for i in range(40)))
    assert draft(tmp_path, "a.en", "a.de")["kind"] == "seq2seq"
    with pytest.raises(UserError, match=r"a.csv: files of one format, or two text files of lines, were expected"):
        read_sample([tmp_path / "a.en", tmp_path / "a.csv"])


def test_files_of_one_form_are_read_together(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_bytes(
            csv(quote='"', encoding="windows-1252")("text,label").replace(b"Ein", name.encode())
        )
    draft(tmp_path, "a.csv", "b.csv")
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert sum(map(len, recipe.rows().rows.values())) == 80
    assert f"  train: [{tmp_path}/a.csv, {tmp_path}/b.csv]\n" in (tmp_path / "mine.yaml").read_text()
    (tmp_path / "b.csv").write_bytes(csv(quote='"')("text,label"))
    with pytest.raises(UserError, match=r"b.csv: the files differ in encoding, header or columns"):
        read_sample([tmp_path / "a.csv", tmp_path / "b.csv"])


def test_flat_answers_are_parts_of_the_field(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [{**ANSWER, "context": f"In Ulm, Ada sang {i}."} for i in range(40)])
    columns = {"answers.text": "answer_text", "answers.answer_start": "answer_start"}
    assert draft(tmp_path, "a.jsonl", task="question_answering")["data"]["columns"] == columns


def test_the_message_has_the_fault_of_the_rows_and_not_that_they_fit_no_task(tmp_path: Path) -> None:
    answers = {"text": ["Ada"], "answer_start": [9]}
    line = {"question": "Who?", "context": ANSWER["context"], "answers": answers}
    jsonl(tmp_path / "a.jsonl", [line] * 40)
    with pytest.raises(UserError, match=r"a.jsonl:1: answers: 'Ada' is not at answer_start 9 .* it is at 8; 40 rows"):
        draft(tmp_path, "a.jsonl", task="question_answering")


def test_the_path_is_relative_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "a.jsonl", [{"text": f"t{i}", "label": i % 2} for i in range(40)])
    sample = read_sample([Path("a.jsonl")])
    rows = valid_rows(sample)
    made = Draft(task=guess(rows, {}, None), sample=sample, rows=40, model="x/y", method="lora", name="mine")
    write(made, Path("deep/mine.yaml"), force=False)
    assert "  train: ../a.jsonl\n" in Path("deep/mine.yaml").read_text()
    monkeypatch.chdir(tmp_path / "deep")
    assert load_recipe(Path("mine.yaml")).data.missing_files() == []
