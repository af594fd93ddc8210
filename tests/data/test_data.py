"""Data sources: files, folders and registry packages, and the splits and samples drawn from them."""

import collections
import json
from pathlib import Path

import datasets
import pytest
from pydantic import ValidationError

from peftlab.data import hub
from peftlab.data.examples import Row
from peftlab.data.files import Files
from peftlab.data.hub import Hub
from peftlab.data.registry import REGISTRY, chitchat
from peftlab.errors import UserError
from peftlab.models.model import Model
from peftlab.recipe import Recipe
from peftlab.sources import assets
from tests.sampling import slow_after

FIELDS = ("tokens", "labels")


def jsonl(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def sentences(count: int, start: int = 0) -> list[dict[str, object]]:
    return [{"tokens": [f"word{i}"], "labels": ["O"]} for i in range(start, start + count)]


def words(rows: list[Row]) -> list[str]:
    return [row.fields["tokens"][0] for row in rows]


def test_conll_2003_has_its_published_sizes() -> None:
    splits = Hub(id="eriktks/conll2003", columns={"labels": "ner_tags"}).load(FIELDS)
    assert {name: len(rows) for name, rows in splits.rows.items()} == {"train": 14041, "validation": 3250, "test": 3453}
    tokens = {name: sum(len(row.fields["tokens"]) for row in rows) for name, rows in splits.rows.items()}
    assert tokens == {"train": 203621, "validation": 51362, "test": 46435}
    assert {tag for row in splits.rows["train"] for tag in row.fields["labels"]} == {
        "O", *(f"{prefix}-{kind}" for prefix in "BI" for kind in ("PER", "ORG", "LOC", "MISC"))
    }  # fmt: skip
    file, _, line = splits.rows["train"][0].where.rpartition(":")
    assert file == "eriktks/conll2003/train.txt"  # without a path of this machine, as it is stored in results
    asset = assets.find("eriktks/conll2003")
    assert asset is not None
    assert (assets.fetch(asset) / Path(file).name).read_text().splitlines()[int(line) - 1].startswith("EU ")


@pytest.mark.parametrize(
    ("id", "columns", "size", "labels"),
    slow_after(
        2,
        [
            ("rotten_tomatoes", {}, 8530, {"pos": 4265, "neg": 4265}),
            ("glue/sst2", {"text": "sentence"}, 872, {"positive": 444, "negative": 428}),
            (
                "glue/mrpc",
                {"text": "sentence1", "text_pair": "sentence2"},
                408,
                {"equivalent": 279, "not_equivalent": 129},
            ),
            (
                "glue/rte",
                {"text": "sentence1", "text_pair": "sentence2"},
                277,
                {"not_entailment": 131, "entailment": 146},
            ),
            (
                "boolq",
                {"text": "question", "text_pair": "passage", "label": "answer"},
                12697,
                {True: 7907, False: 4790},
            ),
        ],
    ),
)
def test_text_classification_sets_have_their_published_sizes(
    id: str, columns: dict[str, str], size: int, labels: dict[object, int]
) -> None:
    splits = Hub(id=id, columns=columns).load(("text", "label"), ("text_pair",))
    rows = [row for part in splits.rows.values() for row in part]
    assert len(rows) == size
    assert collections.Counter(row.fields["label"] for row in rows) == labels
    assert all(row.fields[field].strip() for row in rows for field in row.fields if field != "label")
    assert ("text_pair" in rows[0].fields) == ("text_pair" in columns)


@pytest.mark.parametrize(
    ("name", "size"), slow_after(1, [("tweets", 4200), ("amazon", 3708), ("movies", 10605), ("nyt", 5190)])
)
def test_rated_texts_have_their_published_sizes_and_range(name: str, size: int) -> None:
    splits = Hub(id=f"cjhutto/vaderSentiment/{name}", columns={"label": "rating"}).load(("text", "label"))
    ratings = [row.fields["label"] for part in splits.rows.values() for row in part]
    assert len(ratings) == size
    assert -4 <= min(ratings) < -2.5
    assert 2.5 < max(ratings) <= 4


def test_an_optional_column_is_read_if_present_and_required_if_named(tmp_path: Path) -> None:
    lines: list[dict[str, object]] = [
        {"tokens": f"a{i}", "labels": "x", **({"more": 1} if i % 2 else {})} for i in range(50)
    ]
    path = jsonl(tmp_path / "a.jsonl", lines)
    rows = Files(train=path).load(FIELDS, ("more", "other")).rows["train"]
    assert {tuple(row.fields) for row in rows} == {("tokens", "labels"), ("tokens", "labels", "more")}
    with pytest.raises(UserError, match=r"a.jsonl:\d+: no column 'mor' for .* 'more' \(did you mean 'more'"):
        Files(train=path, columns={"more": "mor"}).load(FIELDS, ("more",))
    with pytest.raises(UserError, match=r"the task has no field 'moer' \(did you mean 'more'\?\)"):
        Files(train=path, columns={"moer": "more"}).load(FIELDS, ("more",))


def test_a_split_assigned_to_another_is_not_read_twice(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        table = datasets.Dataset.from_dict({"tokens": [f"{split} {i}" for i in range(50)], "labels": ["x"] * 50})
        table.to_parquet(tmp_path / f"{split}-00000.parquet")
    rows = Hub(id=str(tmp_path), splits={"test": "validation"}).load(FIELDS).rows
    assert {row.fields["tokens"].split()[0] for row in rows["test"]} == {"validation"}
    assert {row.fields["tokens"].split()[0] for row in rows["validation"]} == {"train"}  # cut off from train
    assert len(rows["train"]) + len(rows["validation"]) == 50


def test_missing_splits_are_cut_by_content_so_that_added_rows_move_no_other(tmp_path: Path) -> None:
    small = Files(train=jsonl(tmp_path / "a.jsonl", sentences(300))).load(FIELDS)
    large = Files(train=jsonl(tmp_path / "b.jsonl", sentences(300, 300)[::-1] + sentences(300))).load(FIELDS)
    assert 15 <= len(small.rows["validation"]) <= 45
    for split, rows in small.rows.items():
        assert set(words(rows)) <= set(words(large.rows[split]))
    other = Files(train=str(tmp_path / "a.jsonl"), split_seed=1).load(FIELDS)
    assert words(other.rows["test"]) != words(small.rows["test"])


def test_a_smaller_sample_is_part_of_a_larger_one(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", sentences(300))
    few, many = (set(words(Files(train=path, train_examples=n).load(FIELDS).rows["train"])) for n in (20, 100))
    assert len(few) == 20
    assert few < many


def test_the_fingerprint_depends_on_the_content_alone(tmp_path: Path) -> None:
    one = Files(train=jsonl(tmp_path / "a.jsonl", sentences(50))).load(FIELDS)
    same = Files(train=jsonl(tmp_path / "moved.jsonl", sentences(50))).load(FIELDS)
    other = Files(train=jsonl(tmp_path / "c.jsonl", sentences(51))).load(FIELDS)
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_a_conll_sentence_is_located_by_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\n\n\nPeter NNP B-PER\n")
    rows, _ = Files(train=str(path)).read()
    assert [(row.where, row.fields) for row in rows["train"]] == [
        (f"{path}:3", {"tokens": ["EU", "rejects"], "labels": ["B-ORG", "O"]}),
        (f"{path}:7", {"tokens": ["Peter"], "labels": ["B-PER"]}),
    ]


def test_words_and_parts_of_speech_are_read_from_conllu(tmp_path: Path) -> None:
    lines = ["1-2\tzum\t_\t_", "1\tzu\tzu\tADP", "2\tdem\tder\tDET", "2.1\tx\tx\tNOUN", "3\tSee\tSee\tNOUN"]
    rest = "\t_" * 5 + "\tSpaceAfter=No\n"
    path = tmp_path / "a.conll"
    path.write_text("# sent_id = 1\n" + "1\tJa\tja\tINTJ" + rest + "\n" + "".join(line + rest for line in lines))
    rows, _ = Files(train=str(path)).read()
    assert [row.fields for row in rows["train"]] == [
        {"tokens": ["Ja"], "labels": ["INTJ"]},
        {"tokens": ["zu", "dem", "See"], "labels": ["ADP", "DET", "NOUN"]},
    ]


def test_validation_and_test_leave_rows_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"validation_share 0.9 \+ test_share 0.1: nothing of train is left"):
        Files(train="a.jsonl", validation_share=0.9)
    path = jsonl(tmp_path / "a.jsonl", sentences(50))
    with pytest.raises(UserError, match=r"the test split of .* is empty; data.test_share: 0 cuts none from train"):
        Files(train=path, test_share=0).load(FIELDS)


def test_a_test_split_that_is_not_scored_may_be_absent(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", sentences(50))
    recipe = {"name": "mine", "model": "x", "task": "token_classification", "method": "lora"}
    recipe |= {"data": {"train": path, "test_share": 0}, "score_test": False}
    rows = Recipe.model_validate(recipe).rows().rows
    assert (len(rows["train"]) + len(rows["validation"]), rows["test"]) == (50, [])
    Path(path).with_name("test.jsonl").write_text("")
    with pytest.raises(UserError, match=r"the test split of .* is empty"):
        Files(train=path, test=str(tmp_path / "test.jsonl")).load(FIELDS, scored=("train", "validation"))


def test_a_tilde_at_the_start_of_a_path_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    data = Files(train="~/a.jsonl", test="x/~/b.jsonl")
    assert (data.train, data.validation, data.test) == (f"{tmp_path}/a.jsonl", None, "x/~/b.jsonl")
    assert Hub(id="~/rows").id == f"{tmp_path}/rows"
    assert Model(id="~/base").id == f"{tmp_path}/base"


def test_class_names_are_read_from_a_folder_of_parquet(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-PER"])),
        }
    )
    table = datasets.Dataset.from_dict({"tokens": [["a", "b"]], "ner_tags": [[0, 1]]}, features=features)
    for split in ("train", "validation", "test"):
        table.to_parquet(tmp_path / f"{split}-00000.parquet")
    splits = Hub(id=str(tmp_path), columns={"labels": "ner_tags"}).load(FIELDS)
    assert splits.rows["train"][0].fields == {"tokens": ["a", "b"], "labels": ["O", "B-PER"]}


def test_columns_are_separated_by_blanks_and_tabs_only_and_comments_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("# sent_id = 1\n10\u00a0000 O\n# O\n\n")
    assert Files(train=str(path)).read()[0]["train"][0].fields == {"tokens": ["10\u00a0000", "#"], "labels": ["O", "O"]}
    path.write_text("New York\tB-LOC\n")
    assert Files(train=str(path)).read()[0]["train"][0].fields == {"tokens": ["New York"], "labels": ["B-LOC"]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"tokens": ["a"], "labels": ["O"]}\n{"tokens": \n', "a.jsonl:2: not JSON"),
        (b'["a"]\n', "a.jsonl:1: a JSON object was expected, found list"),
        (b'{"tokens": ["a"], "labels": ["O"]}\n{"tokens": ["\xff"]}\n', "a.jsonl:2: not UTF-8: byte 0xff"),
        (b'{"tokens": ["a\x00"]}\n', "a.jsonl:1: a NUL byte"),
        (b"[" * 200_000, "a.jsonl:1: nested too deeply"),
        (b'{"tokens": ["\\ud800"], "labels": ["O"]}\n', "a.jsonl:1: half of a surrogate pair"),
        (b'{"tokens": ' + b"1" * 5000 + b"}\n", "a.jsonl:1: not JSON"),
        (b"", "the train split of"),
        (
            b'{"token": ["a"], "labels": ["O"]}\n',
            "no column 'tokens' for the task's field 'tokens' (did you mean 'token'?)",
        ),
        (b'{"x": 1}\n', "no column 'tokens' for the task's field 'tokens'; it has: x"),
    ],
)
def test_a_bad_file_names_file_and_line(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    path = str(tmp_path / "a.jsonl")
    with pytest.raises(UserError) as caught:
        Files(train=path, validation=path, test=path).load(FIELDS)
    assert says in str(caught.value)


def test_a_line_with_another_number_of_columns_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("EU B-ORG\nrejects\n")
    with pytest.raises(UserError, match=r"a.conll:2: 1 columns, expected 2"):
        Files(train=str(tmp_path / "a.conll")).load(FIELDS)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"train": "nowhere.jsonl"}, "nowhere.jsonl: cannot be read: No such file"),
        ({"train": "a.xlsx"}, "a.xlsx ends in '.xlsx'; known are .jsonl"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(settings: dict[str, str], says: str) -> None:
    with pytest.raises(UserError) as caught:
        Files(**settings).load(FIELDS)  # type: ignore[arg-type]
    assert says in str(caught.value)


def test_a_column_for_an_unknown_field_of_the_task_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", sentences(50))
    with pytest.raises(UserError, match=r"data.columns: the task has no field 'label' \(did you mean 'labels'\?\)"):
        Files(train=path, columns={"label": "tags"}).load(FIELDS)


def test_a_file_in_place_of_an_id_is_an_error_with_the_right_setting(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", sentences(3))
    with pytest.raises(UserError, match=r"a.jsonl' is a file; write data: \{train: .*a.jsonl\}"):
        Hub(id=path).load(FIELDS)


def test_a_bad_file_in_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"tokens": \n')
    with pytest.raises(UserError) as caught:
        Hub(id=str(tmp_path)).load(FIELDS)
    assert "\n" not in str(caught.value)


def test_an_unknown_id_is_one_line_with_the_nearest_known_id() -> None:
    with pytest.raises(UserError) as caught:
        Hub(id="eriktks/conl2003").load(FIELDS)
    assert (
        "is not a local folder, not a known asset (did you mean 'eriktks/conll2003'?), and not available from the Hub"
        in str(caught.value)
    )
    assert "\n" not in str(caught.value)


def test_a_conversation_has_alternating_roles_and_ends_with_an_answer(tmp_path: Path) -> None:
    def say(sender: str, *texts: str) -> list[dict[str, str]]:
        return [{"text": text, "sender": sender, "timestamp": ""} for text in texts]

    talk = [say("b", "Hello", "You?"), say("a", " "), say("b", "Hey"), say("a", "Fine"), say("b", "Bye")]
    conversations = {"one": {"messages": talk}, "two": {"messages": [say("c", "Anyone?")]}}
    (tmp_path / "dataset.json").write_text(json.dumps(conversations))
    rows = chitchat(tmp_path)["train"]
    assert [row.where for row in rows] == [f"{tmp_path}/dataset.json, conversation one"]
    assert rows[0].fields["messages"] == [
        {"role": "user", "content": "Hello\nYou?\nHey"},
        {"role": "assistant", "content": "Fine"},
    ]


def test_alpaca_has_its_published_size() -> None:
    splits = Hub(id="alpaca_en_demo").load((), ("instruction", "input", "output"))
    rows = [row for part in splits.rows.values() for row in part]
    assert len(rows) == 999
    assert sum(bool(row.fields["input"]) for row in rows) == 412


def test_a_package_is_read_once_per_process_and_its_cached_rows_are_not_shared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads: list[Path] = []
    original = REGISTRY["datamade/usaddress"]

    def counting(folder: Path) -> dict[str, list[Row]]:
        reads.append(folder)
        return original(folder)

    monkeypatch.setitem(REGISTRY, "datamade/usaddress", counting)
    hub._registry_rows.cache_clear()
    first, source = Hub(id="datamade/usaddress").read()
    count = len(first["train"])
    first["train"].clear()
    again, _ = Hub(id="datamade/usaddress").read()
    assert len(reads) == 1
    assert len(again["train"]) == count
    assert again["train"][0].where.startswith("datamade/usaddress/")
    assert source.startswith("datamade/usaddress (")
