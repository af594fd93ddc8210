"""Every bad row is named by file, line and field before training starts, or skipped and counted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from peftlab.data.bad_rows import apply_bad_row_policy
from peftlab.data.examples import Row, Splits
from peftlab.data.files import Files
from peftlab.data.hub import Hub
from peftlab.errors import UserError
from peftlab.loading.encoding import encode
from peftlab.loading.model import load_tokenizer
from peftlab.models.model import ModelFiles
from peftlab.recipe import load_recipe
from peftlab.tasks import Task
from peftlab.tasks.sequence_classification import SequenceClassification
from peftlab.tasks.token_classification import TokenClassification
from tests.faults.conftest import counted

GOOD = 30
TAGS = ["O", "B-PER", "I-PER", "B-LOC"]


def sentence(number: int) -> dict[str, Any]:
    return {"tokens": ["Ada", "Byron", "met", f"No{number}"], "labels": ["B-PER", "I-PER", "O", "O"]}


def line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def load(path: Path, task: Task | None = None, **settings: Any) -> Splits:
    task = task or TokenClassification()
    values = {"train": str(path), "validation_share": 0.2, "test_share": 0.2, **settings}
    return Files.model_validate(values).load(task.fields, check=task.check_row, visible=task.visible_fields)


def refusal(path: Path, task: Task | None = None, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(path, task, **settings)
    return str(caught.value)


ROWS: dict[str, tuple[bytes, str]] = {
    "cut off": (b'{"tokens": ["a"], "labels": \n', "not JSON: Expecting value"),
    "not closed": (b'{"tokens": ["a"], "labels": ["O"]\n', "not JSON"),
    "single quotes": (b"{'tokens': ['a'], 'labels': ['O']}\n", "not JSON"),
    "a comment": (b"# tokens\n", "not JSON"),
    "two objects": (b'{"tokens": ["a"], "labels": ["O"]} {}\n', "not JSON: Extra data"),
    "a key twice": (b'{"tokens": ["a"], "tokens": ["b"], "labels": ["O"]}\n', "tokens: the key occurs twice"),
    "NaN": (b'{"tokens": ["a", NaN], "labels": ["O"]}\n', "tokens: not JSON: NaN is not a number"),
    "infinity": (b'{"tokens": ["a"], "labels": -Infinity}\n', "labels: not JSON: -Infinity is not a number"),
    "a number of 5,000 digits": (b'{"tokens": ' + b"1" * 5000 + b"}\n", "not JSON"),
    "depth": (b"[" * 200_000 + b"\n", "nested too deeply"),
    "a list": (b'["a", "b"]\n', "a JSON object was expected, found list"),
    "a string": (b'"a"\n', "a JSON object was expected, found str"),
    "null": (b"null\n", "a JSON object was expected, found NoneType"),
    "NUL": (b'{"tokens": ["a\x00"], "labels": ["O"]}\n', "a NUL byte"),
    "Latin-1": ('{"tokens": ["é"], "labels": ["O"]}\n'.encode("latin-1"), "not UTF-8: byte 0xe9"),
    "half of a UTF-8 character": (b'{"tokens": ["\xe2\x82"], "labels": ["O"]}\n', "not UTF-8: byte 0xe2"),
    "an overlong form": (b'{"tokens": ["\xc0\xaf"], "labels": ["O"]}\n', "not UTF-8: byte 0xc0"),
    "a surrogate in UTF-8": (b'{"tokens": ["\xed\xa0\x80"], "labels": ["O"]}\n', "not UTF-8: byte 0xed"),
    "UTF-16": ('{"tokens": ["a"], "labels": ["O"]}\n'.encode("utf-16-le")[:-1], "a NUL byte"),
    "half of a surrogate pair": (b'{"tokens": ["\\ud800"], "labels": ["O"]}\n', "half of a surrogate pair"),
    "a mark in the middle": (b'\xef\xbb\xbf{"tokens": ["a"], "labels": ["O"]}\n', "not JSON"),
    "a line of 5 MB": (line({"tokens": ["a" * 5_000_000], "labels": ["O"]}), "a line of more than 4194304 bytes"),
    "no tokens": (line({"labels": ["O"]}), "tokens: no column 'tokens' for the task's field 'tokens'"),
    "no labels": (line({"tokens": ["a"]}), "labels: no column 'labels' for the task's field 'labels'; it has: tokens"),
    "a misspelled field": (line({"tokens": ["a"], "labls": ["O"]}), "(did you mean 'labls'?)"),
    "an empty object": (b"{}\n", "tokens: no column 'tokens'"),
    "tokens null": (line({"tokens": None, "labels": ["O"]}), "tokens: a list of strings was expected, found 'None'"),
    "labels null": (line({"tokens": ["a"], "labels": None}), "labels: a list of strings was expected, found 'None'"),
    "tokens a string": (line({"tokens": "a b", "labels": ["O", "O"]}), "tokens: a list of strings was expected"),
    "tokens a number": (line({"tokens": 3, "labels": ["O"]}), "tokens: a list of strings was expected, found '3'"),
    "tokens an object": (line({"tokens": {"0": "a"}, "labels": ["O"]}), "tokens: a list of strings was expected"),
    "a token null": (line({"tokens": ["a", None], "labels": ["O", "O"]}), "tokens: a list of strings was expected"),
    "a token a number": (line({"tokens": ["a", 1], "labels": ["O", "O"]}), "tokens: a list of strings was expected"),
    "a token a list": (line({"tokens": [["a"]], "labels": ["O"]}), "tokens: a list of strings was expected"),
    "tags as numbers": (line({"tokens": ["a"], "labels": [0]}), "labels: a list of strings was expected, found '[0]'"),
    "tags as booleans": (line({"tokens": ["a"], "labels": [True]}), "labels: a list of strings was expected"),
    "tags a string": (line({"tokens": ["a"], "labels": "O"}), "labels: a list of strings was expected, found 'O'"),
    "too few tags": (line({"tokens": ["a", "b"], "labels": ["O"]}), "labels: 1 tags for 2 tokens"),
    "too many tags": (line({"tokens": ["a"], "labels": ["O", "O"]}), "labels: 2 tags for 1 tokens"),
    "no tags": (line({"tokens": ["a"], "labels": []}), "labels: 0 tags for 1 tokens"),
    "an empty sentence": (line({"tokens": [], "labels": []}), "tokens: an empty sentence"),
    "an empty word": (line({"tokens": ["a", ""], "labels": ["O", "O"]}), "tokens: an empty word"),
    "a word of spaces": (line({"tokens": ["a", " \t"], "labels": ["O", "O"]}), "tokens: an empty word"),
    "I- first": (
        line({"tokens": ["a"], "labels": ["I-PER"]}),
        "labels: 'I-PER' at 'a' follows 'O', and no B-PER opens it",
    ),
    "I- after O": (line({"tokens": ["a", "b"], "labels": ["O", "I-PER"]}), "'I-PER' at 'b' follows 'O'"),
    "I- of another type": (
        line({"tokens": ["a", "b"], "labels": ["B-LOC", "I-PER"]}),
        "'I-PER' at 'b' follows 'B-LOC'",
    ),
    "IOBES": (line({"tokens": ["a"], "labels": ["S-PER"]}), "labels: 'S-PER' at 'a' is not an IOB2 tag"),
    "BILOU": (line({"tokens": ["a"], "labels": ["U-PER"]}), "labels: 'U-PER' at 'a' is not an IOB2 tag"),
    "the type first": (line({"tokens": ["a"], "labels": ["PER-B"]}), "labels: 'PER-B' at 'a' is not an IOB2 tag"),
    "a bare type": (line({"tokens": ["a"], "labels": ["PER"]}), "labels: 'PER' at 'a' is not an IOB2 tag"),
    "B- of nothing": (line({"tokens": ["a"], "labels": ["B-"]}), "labels: 'B-' at 'a' is not an IOB2 tag"),
    "a small o": (line({"tokens": ["a"], "labels": ["o"]}), "labels: 'o' at 'a' is not an IOB2 tag"),
    "a space before a tag": (line({"tokens": ["a"], "labels": [" O"]}), "labels: ' O' at 'a' is not an IOB2 tag"),
    "an unknown type": (line({"tokens": ["a"], "labels": ["B-LOCC"]}), "unknown tag 'B-LOCC' (did you mean 'B-LOC'?)"),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_bad_row_is_named_by_file_and_line_with_its_fault(tmp_path: Path, case: str) -> None:
    bad, says = ROWS[case]
    path = tmp_path / "mine.jsonl"
    before = [line(sentence(i)) for i in range(GOOD)]
    path.write_bytes(b"".join([*before[:11], bad, *before[11:]]))
    message = refusal(path, TokenClassification(labels=TAGS))
    assert message.startswith(f"{path}:12: ")
    assert says in message
    assert "\n" not in message

    splits = load(path, TokenClassification(labels=TAGS), on_bad_row="skip")
    assert sum(splits.skipped["train"].values()) == 1
    assert sum(len(rows) for rows in splits.rows.values()) == GOOD
    assert path.with_name("good.jsonl").write_bytes(b"".join(before))
    good = load(path.with_name("good.jsonl"), TokenClassification(labels=TAGS))
    assert good.fingerprint == splits.fingerprint


CONLL: dict[str, tuple[str, str]] = {
    "a word without a tag": ("Paris\n\n", "1 columns, expected 3 as on line 1"),
    "a column more": ("Paris X Y B-LOC\n\n", "4 columns, expected 3 as on line 1"),
    "not UTF-8": ("Pari\udce9 X B-LOC\n\n", "not UTF-8: byte 0xe9"),
    "NUL": ("Paris\0 X B-LOC\n\n", "a NUL byte"),
    "I- first": ("Paris X I-LOC\n\n", "labels: 'I-LOC' at 'Paris' follows 'O'"),
    "another scheme": ("Paris X S-LOC\n\n", "labels: 'S-LOC' at 'Paris' is not an IOB2 tag"),
}


@pytest.mark.parametrize("case", CONLL)
def test_a_bad_line_of_columns_makes_its_sentence_bad(tmp_path: Path, case: str) -> None:
    bad, says = CONLL[case]
    path = tmp_path / "mine.conll"
    good = "".join(f"Ada X B-PER\nmet X O\nNo{i} X O\n\n" for i in range(GOOD))
    path.write_bytes((good + bad).encode("utf-8", errors="surrogateescape"))
    assert refusal(path).startswith(f"{path}:{4 * GOOD + 1}: ")
    assert says in refusal(path)
    splits = load(path, on_bad_row="skip")
    assert sum(splits.skipped["train"].values()) == 1
    assert sum(len(rows) for rows in splits.rows.values()) == GOOD


CSV: dict[str, tuple[str, str]] = {
    "a cell too few": ("only\n", "1 columns, expected 2 as on line 1"),
    "a cell too many": ("a,b,c\n", "3 columns, expected 2 as on line 1"),
    "a quotation mark inside": ('"a"b,c\n', "not CSV: "),
    "NUL": ("a\0,b\n", "a NUL byte"),
    "not UTF-8": ("caf\udce9,b\n", "not UTF-8: byte 0xe9"),
    "not UTF-8 in the second line of a cell": ('"a\nb\udce9",c\n', "not UTF-8: byte 0xe9"),
}


@pytest.mark.parametrize("case", CSV)
def test_a_bad_record_of_a_table_is_named_by_its_first_line(tmp_path: Path, case: str) -> None:
    bad, says = CSV[case]
    path = tmp_path / "mine.csv"
    text = "text,label\n" + '"two\nlines",x\n' + "".join(f"row {i},y\n" for i in range(GOOD)) + bad + "last,z\n"
    path.write_bytes(text.encode("utf-8", errors="surrogateescape"))
    data = Files(train=str(path), on_bad_row="skip", validation_share=0.2, test_share=0.2)
    strict = data.model_copy(update={"on_bad_row": "error"})
    with pytest.raises(UserError) as caught:
        strict.load(("text", "label"))
    assert str(caught.value).startswith(f"{path}:{GOOD + 4}: ")
    assert says in str(caught.value)
    splits = data.load(("text", "label"))
    assert sum(splits.skipped["train"].values()) == 1
    texts = {row.fields["text"] for rows in splits.rows.values() for row in rows}
    assert {"two\nlines", "last", "row 0", f"row {GOOD - 1}"} <= texts
    assert len(texts) == GOOD + 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("text,text\na,b\n", ":2: text: two columns are named 'text'"),
        ("text,\na,b\n", ":2: no column 'label' for the task's field 'label'; it has: text"),
        ('text,label\n"a,b\nc,d\n', ":2: a quotation mark that is never closed"),
        ("\0,label\na,b\n", ":1: a NUL byte"),
        ("body,tag\na,b\n", ":2: no column 'text' for the task's field 'text'"),
        ("", ":1: is empty; the first line names the columns"),
        ("text,label\n", "the train split of"),
    ],
)
def test_a_table_that_cannot_be_read_is_an_error_even_if_bad_rows_are_skipped(
    tmp_path: Path, text: str, says: str
) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        Files(train=str(path), on_bad_row="skip").load(("text", "label"))
    assert says in str(caught.value)


# A good file of each format, and its task.
FORMATS: dict[str, tuple[bytes, Task]] = {
    "jsonl": (b"".join(line(sentence(i)) for i in range(GOOD)), TokenClassification()),
    "conll": (b"".join(b"Ada X B-PER\nmet X O\nNo%d X O\n\n" % i for i in range(GOOD)), TokenClassification()),
    "csv": (
        b"text,label\n" + b"".join(b'"row, ""%d""",%d\n' % (i, i % 3) for i in range(GOOD)),
        SequenceClassification(),
    ),
}
PIECES = st.one_of(
    st.binary(max_size=6),
    st.sampled_from(
        [b"\n", b"\r", b'"', b",", b"\t", b"\0", b"{", b"]", b"\\ud800", b"null", b"I-", b"\xff", b"\n\n", b" ", b""]
    ),
)


@settings(
    max_examples=counted(60, 2000),
    deadline=None,
    derandomize=counted(1, 0) == 1,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_read_or_named_by_line(name: str, data: st.DataObject, tmp_path: Path) -> None:
    content, task = FORMATS[name]
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = min(len(content), start + data.draw(st.integers(0, 8)))
        content = content[:start] + data.draw(PIECES) + content[end:]
    path = tmp_path / f"mine.{name}"
    path.write_bytes(content)
    for on_bad_row in ("error", "skip"):
        try:
            splits = load(path, task, on_bad_row=on_bad_row)
            assert sum(len(rows) for rows in splits.rows.values()) > 0
        except UserError as error:
            lines = str(error).split("\n")
            assert all(re.match(rf"{path}(:\d+)?: .|and \d+ more bad rows|data.on_bad_row: ", at) for at in lines), (
                lines
            )
            assert all(at.isprintable() for at in lines), lines


def test_control_characters_in_messages_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(b"\x1b[2Jtext,label\na,b\n")
    assert refusal(path, SequenceClassification()).startswith(
        rf"{path}:2: no column 'text' for the task's field 'text'; it has: \x1b[2Jtext, label"
    )


def test_bad_rows_of_parquet_are_named_by_number(tmp_path: Path) -> None:
    path = tmp_path / "mine.parquet"
    rows = [sentence(i) for i in range(GOOD)]
    rows[6] = {"tokens": ["a", "b"], "labels": ["O"]}
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert refusal(path) == f"{path} row 7: labels: 1 tags for 2 tokens"
    (tmp_path / "torn.parquet").write_bytes(path.read_bytes()[:-9])
    assert refusal(tmp_path / "torn.parquet").startswith(f"{tmp_path / 'torn.parquet'}: not parquet: ")


def test_bad_rows_of_a_folder_are_named_by_number(tmp_path: Path) -> None:
    rows = [sentence(i) for i in range(GOOD)]
    rows[3]["labels"] = ["O"]
    (tmp_path / "train.jsonl").write_bytes(b"".join(line(row) for row in rows))
    task = TokenClassification()
    with pytest.raises(UserError, match=r"train row 4: labels: 1 tags for 4 tokens"):
        Hub(id=str(tmp_path)).load(task.fields, check=task.check_row)


@pytest.mark.slow
def test_a_row_of_100_000_tokens_is_named_before_training_or_counted(tmp_path: Path, minilm: ModelFiles) -> None:
    path = tmp_path / "mine.jsonl"
    long = {"tokens": ["word"] * 100_000, "labels": ["O"] * 100_000}
    path.write_bytes(b"".join(line(sentence(i)) for i in range(GOOD)) + line(long))
    splits = load(path, validation=str(path), test=str(path))
    task = TokenClassification().bind(splits.rows["train"])
    tokenizer = load_tokenizer(minilm, task)
    settings: dict[str, Any] = {"files": minilm, "what": "the train split"}
    with pytest.raises(UserError, match=rf"^{path}:{GOOD + 1}: 100002 tokens, but at most 128 fit"):
        encode(task, splits.rows["train"], tokenizer, 128, on_bad_row="error", **settings)
    encoded, skipped = encode(task, splits.rows["train"], tokenizer, 128, on_bad_row="skip", **settings)
    assert skipped == {"N tokens, but at most N fit": 1}
    assert len(encoded.examples) == GOOD


def test_many_bad_rows_are_reported_together_beginning_with_one_of_each_reason(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    short = line({"tokens": ["a", "b"], "labels": ["O"]})
    path.write_bytes(b"".join([line(sentence(0)), *[short] * 20, b"{\n", line({"labels": ["O"]})]))
    lines = refusal(path).splitlines()
    assert [text.split(":")[1] for text in lines] == ["2", "22", "23"]
    assert lines[0].endswith(" (and 19 more rows, of 23)")


def test_every_split_is_checked_and_skips_are_counted_by_reason(tmp_path: Path) -> None:
    good = b"".join(line(sentence(i)) for i in range(GOOD))
    short, broken = line({"tokens": ["a", "b"], "labels": ["O"]}), b"{\n"
    (tmp_path / "train.jsonl").write_bytes(good + short + short + broken)
    (tmp_path / "test.jsonl").write_bytes(good + broken)
    settings = {"validation": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl"), "on_bad_row": "skip"}
    splits = load(tmp_path / "train.jsonl", **settings)
    assert splits.skipped == {
        "train": {"labels": 2, "not JSON": 1},
        "validation": {"labels": 2, "not JSON": 1},
        "test": {"not JSON": 1},
    }


def test_more_than_a_tenth_is_not_skipped(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b"".join(line(sentence(i)) for i in range(27)) + b"{\n" * 3)
    assert sum(load(path, on_bad_row="skip").skipped["train"].values()) == 3
    path.write_bytes(b"".join(line(sentence(i)) for i in range(26)) + b"{\n" * 4)
    message = refusal(path, on_bad_row="skip")
    assert message.startswith(f"{path}:27: not JSON")
    assert message.endswith(
        f"data.on_bad_row: 4 of 30 rows of the train split of {path} are bad, and at most 10% are skipped"
    )


def test_a_run_with_bad_rows_stops_before_the_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peftlab.runs.run import run

    (tmp_path / "mine.jsonl").write_bytes(b"".join(line(sentence(i)) for i in range(GOOD)) + b"{\n")
    (tmp_path / "mine.yaml").write_text(
        "model: nowhere/at-all\ntask: token_classification\ndata: {train: mine.jsonl}\nmethod: lora\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^mine.jsonl:31: not JSON"):
        run(load_recipe(Path("mine.yaml")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_with_the_same_fault_are_one_line() -> None:
    bad = [Row(f"mine.jsonl:{number}", {}, fault="no 'label'") for number in range(1, 10001)]
    with pytest.raises(UserError, match=r"^mine.jsonl:1: no 'label' \(and 9999 more rows, of 10000\)$"):
        apply_bad_row_policy(bad, 10000, "the train split of mine.jsonl", "error")
