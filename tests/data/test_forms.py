"""Forms in which people have their data: the rows that a task gets from them, or the one line with the cure."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from peftlab.data.examples import Row
from peftlab.errors import UserError
from peftlab.recipe import Recipe, load_recipe

TEXTS = [f"ein Café, Nr. {i}" for i in range(20)]
LABELS = ["gut", "schlecht"] * 10


def rows(data: dict[str, Any], task: Any = "sequence_classification") -> list[Row]:
    """The rows of all splits, in the order of the file."""
    data = {"validation_share": 0.3, "test_share": 0.3, **data}
    recipe = Recipe.model_validate_json(
        json.dumps({"name": "mine", "model": "x", "task": task, "method": "lora", "data": data})
    )
    splits = recipe.rows().rows.values()
    return sorted(
        (row for part in splits for row in part), key=lambda row: int(row.where.rpartition(":")[2].split()[-1])
    )


def labeled(data: dict[str, Any], task: Any = "sequence_classification") -> list[tuple[Any, ...]]:
    return [(row.fields["text"], row.fields["label"]) for row in rows(data, task)]


def table(lines: list[str], path: Path, encoding: str = "utf-8") -> dict[str, Any]:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))
    return {"train": str(path)}


BODY = [f'"{text}",{label}' for text, label in zip(TEXTS, LABELS, strict=True)]
EXPECTED = list(zip(TEXTS, LABELS, strict=True))


@pytest.mark.parametrize(
    "lines",
    [
        [",text,label", *(f"{i},{line}" for i, line in enumerate(BODY))],
        ["text,label,", *(f"{line}," for line in BODY)],
        ["text,label,note,note", *(f"{line},a,b" for line in BODY)],
        ["sep=;", "text;label", *(line.replace('",', '";') for line in BODY)],
        ["text\tlabel", *(line.replace('",', '"\t') for line in BODY)],
    ],
)
def test_columns_that_are_not_used_and_delimiters_do_no_harm(lines: list[str], tmp_path: Path) -> None:
    assert labeled(table(lines, tmp_path / "a.csv")) == EXPECTED


def test_a_duplicate_column_that_is_used_is_one_line(tmp_path: Path) -> None:
    data = table(["text,label,label", *(f"{line},x" for line in BODY)], tmp_path / "a.csv")
    cure = "data.header: true and data.names rename them"
    with pytest.raises(UserError) as caught:
        rows(data)
    assert labeled({**data, "header": True, "names": ["text", "label", "other"]}) == EXPECTED
    assert str(caught.value) == f"{tmp_path}/a.csv:2: label: two columns are named 'label'; {cure}"


def test_a_table_without_a_header_has_names_or_numbers(tmp_path: Path) -> None:
    data = table(BODY, tmp_path / "a.csv")
    with pytest.raises(UserError, match=r"no column 'text' .*; if the first line of the file is data, set data.names"):
        rows(data)
    assert labeled({**data, "names": ["text", "label"]}) == EXPECTED
    assert labeled({**data, "header": False, "columns": {"text": "1", "label": "2"}}) == EXPECTED
    assert rows({**data, "names": ["text", "label"]})[0].where == f"{tmp_path}/a.csv:1"
    assert labeled({**data, "header": True, "names": ["text", "label"]}) == EXPECTED[1:]
    with pytest.raises(UserError, match=r"a.csv:1: 2 columns, but data.names has 3"):
        rows({**data, "names": ["a", "b", "c"]})


def test_an_encoding_is_named_by_the_message_and_read_by_the_setting(tmp_path: Path) -> None:
    lines = ["text,label", *BODY]
    data = table(lines, tmp_path / "a.csv", "windows-1252")
    with pytest.raises(
        UserError, match=r":2: not UTF-8: byte 0xe9; if it is windows-1252, set data.encoding: windows-1"
    ):
        rows(data)
    assert labeled({**data, "encoding": "windows-1252"}) == EXPECTED
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):  # with a byte order mark
        assert labeled(table(lines, tmp_path / "a.csv", encoding)) == EXPECTED
    data = table(lines, tmp_path / "a.csv", "utf-16-le")
    with pytest.raises(UserError, match=r"a NUL byte; if it is UTF-16, set data.encoding: utf-16-le"):
        rows(data)
    assert labeled({**data, "encoding": "utf-16-le"}) == EXPECTED


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"train": "a.csv", "encoding": "klingon"}, "'klingon' is no known encoding"),
        ({"train": "a.csv", "encoding": "rot13"}, "'rot13' is no known encoding"),
        ({"train": "a.parquet", "encoding": "utf-8"}, "encoding is for jsonl, json, csv"),
        ({"train": "a.jsonl", "names": ["a", "b"]}, "names is for csv, tsv and not for jsonl"),
        ({"train": "a.csv", "names": ["a", "a"]}, "has a name twice"),
        ({"train": "a.csv", "conll_columns": {"tokens": 1}}, "conll_columns is for conll and not for csv"),
    ],
)
def test_an_option_without_effect_is_refused(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    recipe = tmp_path / "a.yaml"
    data = json.dumps(settings)
    recipe.write_text(f"model: x/y\ntask: sequence_classification\nmethod: lora\ndata: {data}\n")
    with pytest.raises(UserError) as caught:
        load_recipe(recipe)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_column_of_0_and_1_for_each_label_makes_the_list_of_labels(tmp_path: Path) -> None:
    lines = [f"t{i},{('0', '1.0', 'True')[i % 3]},{i % 2}" for i in range(20)]
    data = table(["text,toxic,threat", *lines], tmp_path / "a.csv") | {"labels_from": ["toxic", "threat"]}
    task = {"kind": "sequence_classification", "problem": "multi_label"}
    assert [label for _, label in labeled(data, task)][:4] == [[], ["toxic", "threat"], ["toxic"], ["threat"]]
    with pytest.raises(UserError, match=r"no column 'threats' for data.labels_from \(did you mean 'threat'\?\)"):
        rows({**data, "labels_from": ["toxic", "threats"]}, task)
    with pytest.raises(UserError, match=r"data.labels_from: makes the field 'label', but data.columns has one too"):
        rows({**data, "columns": {"label": "toxic"}}, task)
    table(["text,toxic,threat", *lines, "t,1,2"], tmp_path / "a.csv")
    with pytest.raises(UserError, match=r"a.csv:22: threat: 0 or 1 was expected, found '2'"):
        rows(data, task)


def test_integer_labels_get_their_names(tmp_path: Path) -> None:
    data = table(["text,label", *(f"t{i},{i % 2}" for i in range(20))], tmp_path / "a.csv")
    task = {"kind": "sequence_classification", "labels": {0: "anger", 1: "joy"}}
    assert [label for _, label in labeled(data, task)][:2] == ["anger", "joy"]
    table(["text,label", *(f"t{i},{i % 2}" for i in range(20)), "t,2"], tmp_path / "a.csv")
    with pytest.raises(UserError, match=r"a.csv:22: label: '2' is not a label of the task .* known are anger, joy"):
        rows(data, task)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"tokens": ["Ada", f"{i}"], "labels": [1, 0]}) + "\n" for i in range(20)))
    tags = {"kind": "token_classification", "labels": {0: "O", 1: "B-PER"}}
    assert rows({"train": str(path)}, tags)[0].fields["labels"] == ["B-PER", "O"]


def test_nested_values_are_read_by_their_path(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [{"translation": {"en": f"cat {i}", "de": [f"Katze {i}"]}} for i in range(20)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = {"train": str(path), "columns": {"source": "translation.en", "target": "translation.de.0"}}
    assert rows(data, "seq2seq")[3].fields == {"source": "cat 3", "target": "Katze 3"}
    with pytest.raises(UserError, match=r"no column 'translation.fr' for the task's field 'target'"):
        rows({**data, "columns": {**data["columns"], "target": "translation.fr"}}, "seq2seq")  # type: ignore[dict-item]


def test_two_parallel_files_are_pairs_of_lines(tmp_path: Path) -> None:
    (tmp_path / "a.en").write_text("".join(f"cat {i}\n" for i in range(20)))
    (tmp_path / "a.de").write_text("".join(f"Katze {i}\n" for i in range(20)))
    data = {"train": {"source": str(tmp_path / "a.en"), "target": str(tmp_path / "a.de")}}
    assert rows(data, "seq2seq")[3].fields == {"source": "cat 3", "target": "Katze 3"}
    (tmp_path / "a.de").write_text("".join(f"Katze {i}\n" for i in range(19)))
    with pytest.raises(UserError, match=r"as many lines as each other: .*a.en has 20, .*a.de has 19"):
        rows(data, "seq2seq")
    (tmp_path / "a.de").write_text("".join(f"Katze {i}\n" if i != 7 else "\n" for i in range(20)))
    with pytest.raises(UserError, match=r"a.en:8: target: a string was expected"):
        rows(data, "seq2seq")


ANSWERS = {"text": ["Ada"], "answer_start": [8]}


@pytest.mark.parametrize(
    ("fields", "columns", "expected"),
    [
        ({"answers": [{"text": "Ada", "answer_start": 8}]}, {}, ANSWERS),
        ({"answers": {"text": "Ada", "answer_start": 8}}, {}, ANSWERS),
        ({"answers": {"text": [""], "answer_start": [0]}}, {}, {"text": [], "answer_start": []}),
        (
            {"answer_text": "Ada", "start": "8"},
            {"answers.text": "answer_text", "answers.answer_start": "start"},
            ANSWERS,
        ),
    ],
)
def test_the_forms_of_squad_are_one(
    fields: dict[str, Any], columns: dict[str, str], expected: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    lines = [{"question": "Who?", "context": f"In Ulm, Ada met {i}.", **fields} for i in range(20)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = {"kind": "question_answering", "no_answer": True}
    assert rows({"train": str(path), "columns": columns}, task)[0].fields["answers"] == expected


def test_the_articles_of_squad_are_read_as_questions(tmp_path: Path) -> None:
    path = tmp_path / "squad.json"
    answers = [{"text": "Ada", "answer_start": 8}]
    paragraphs = [
        {"context": f"In Ulm, Ada met {i}.", "qas": [{"id": str(i), "question": "Who?", "answers": answers}]}
        for i in range(20)
    ]
    path.write_text(json.dumps({"version": "2", "data": [{"title": "t", "paragraphs": paragraphs}]}))
    read = rows({"train": str(path)}, "question_answering")
    assert [row.fields["answers"] for row in read] == [ANSWERS] * 20
    assert read[3].where == f"{path}, article 1, question 3"


def test_columns_of_types_that_no_task_reads_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "picture": datasets.Image(),
            "sound": datasets.Audio(),
        }
    )
    values = {"text": TEXTS, "label": [0, 1] * 10, "picture": [None] * 20, "sound": [None] * 20}
    arrow = datasets.Dataset.from_dict(values, features=features).data.table
    arrow = arrow.append_column("odd", pyarrow.array([1] * 20)).append_column("odd", pyarrow.array(["x"] * 20))
    metadata = json.loads(arrow.schema.metadata[b"huggingface"])
    metadata["info"]["features"]["odd"] = {"_type": "Hologram"}
    parquet.write_table(arrow.replace_schema_metadata({"huggingface": json.dumps(metadata)}), path)
    assert labeled({"train": str(path)}) == list(zip(TEXTS, ["no", "yes"] * 10, strict=True))
    with pytest.raises(UserError, match=r"text: is of type Image, which no task reads$"):
        rows({"train": str(path), "columns": {"text": "picture"}})


def test_a_value_that_is_no_json_harms_only_a_row_that_uses_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": f"t{i}", "label": "ab"[i % 2]}) + "\n" for i in range(20)]
    lines[4] = (
        '{"text": "t", "label": "a", "score": NaN, "id": 1, "id": 2, "half": "\\ud800", "in": {"x": 1, "x": 2}}\n'
    )
    path.write_text("".join(lines))
    assert len(rows({"train": str(path)})) == 20
    for column, says in [
        ("score", "NaN is not a number"),
        ("id", "twice"),
        ("half", "surrogate"),
        ("in", "x: the key"),
    ]:
        path.write_text(
            "".join(line.replace('"label"', f'"{column}"') if '"id"' not in line else line for line in lines)
        )
        with pytest.raises(UserError, match=rf"a.jsonl:5: .*{says}"):
            rows({"train": str(path), "columns": {"label": column}})


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_images_in_a_folder_of_data_do_no_harm(ending: str, tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.Value("int64"), "i": datasets.Image()}
    )
    table = datasets.Dataset.from_dict({"text": TEXTS, "label": [0, 1] * 10, "i": [None] * 20}, features=features)
    if ending == "parquet":
        table.to_parquet(tmp_path / "train-00000.parquet")
    else:
        table.save_to_disk(tmp_path)
    assert labeled({"id": str(tmp_path)}) == list(zip(TEXTS, [0, 1] * 10, strict=True))
    with pytest.raises(UserError, match=r"text: is of type Image, which no task reads$"):
        rows({"id": str(tmp_path), "columns": {"text": "i"}})
