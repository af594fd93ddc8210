"""Data sets of the registry have their published sizes."""

import collections
import itertools
import json
from pathlib import Path

import pytest

from peftlab.data import hub
from peftlab.data.examples import Row
from peftlab.data.hub import Hub
from peftlab.data.registry import REGISTRY, chitchat
from peftlab.errors import UserError
from peftlab.recipe import load_recipe
from peftlab.sources import apt, assets
from tests.data.test_data import FIELDS
from tests.sampling import slow_after


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


@pytest.mark.slow
def test_no_source_package_of_debian_is_in_two_splits_and_no_english_text_occurs_twice() -> None:
    asset = assets.find("debian/package-descriptions-en-de")
    assert asset is not None
    if assets.cached(asset) is None and not any(path.exists() for path in apt.KEYRINGS):
        pytest.skip("only Debian's apt fetches it")
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "lora-translation.yaml")
    assert isinstance(recipe.data, Hub)
    columns = {"source": "en", "target": "de", "package": "source_package"}
    rows = Hub(id=recipe.data.id, columns=columns, group=recipe.data.group).load(columns).rows
    assert sum(map(len, rows.values())) > 30_000
    packages = [{row.fields["package"] for row in part} for part in rows.values()]
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(packages, 2))
    english = [row.fields["source"].casefold() for part in rows.values() for row in part]
    assert len(set(english)) == len(english)
