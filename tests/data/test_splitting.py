"""Splits and samples by content, group and class; leaks between splits."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from peftlab.data.examples import Splits
from peftlab.data.files import Files
from peftlab.errors import UserError

FIELDS = ("text", "label")


def rows(count: int = 600) -> list[dict[str, Any]]:
    """Rows of class a (a third), c (12 rows of 600) and b (the others), twelve rows per title."""
    labels = ["c" if i % 50 == 0 else "a" if i % 3 == 0 else "b" for i in range(count)]
    return [{"text": f"text {i}", "label": labels[i], "title": f"T{i // 12}"} for i in range(count)]


def load(folder: Path, content: list[dict[str, Any]], **settings: Any) -> Splits:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return Files.model_validate({"train": str(path), **settings}).load(FIELDS, visible=("text",))


def texts(splits: Splits) -> dict[str, set[str]]:
    return {split: {row.fields["text"] for row in part} for split, part in splits.rows.items()}


def labels(splits: Splits, split: str) -> Counter[str]:
    return Counter(row.fields["label"] for row in splits.rows[split])


def test_a_group_is_in_one_split_and_stays_there_when_rows_are_added(tmp_path: Path) -> None:
    content = rows()
    title = {row["text"]: row["title"] for row in content}
    before = texts(load(tmp_path, content, group="title"))
    groups = {split: {title[text] for text in part} for split, part in before.items()}
    assert not groups["train"] & groups["validation"]
    assert not groups["train"] & groups["test"]
    assert not groups["validation"] & groups["test"]
    assert sum(map(len, before.values())) == 600
    more = [{"text": f"new {i}", "label": "a", "title": f"N{i}"} for i in range(100)]
    random.Random(0).shuffle(content)
    later = texts(load(tmp_path, more + content, group="title"))
    assert all(part <= later[split] for split, part in before.items())
    assert texts(load(tmp_path, content)) != before


def test_each_class_keeps_its_fraction_in_each_split(tmp_path: Path) -> None:
    splits = load(tmp_path, rows(), stratify="label", validation_share=0.25, test_share=0.25)
    total = Counter(row["label"] for row in rows())
    assert total["c"] == 12
    for split in ("validation", "test"):
        for label, count in labels(splits, split).items():
            assert abs(count - total[label] / 4) <= 1, (split, label)
    loose = load(tmp_path, rows(), validation_share=0.25, test_share=0.25)
    assert max(abs(labels(loose, s)[c] - total[c] / 4) for s in ("validation", "test") for c in total) > 1


def test_stratified_splits_ignore_order_and_move_few_rows_when_rows_are_added(tmp_path: Path) -> None:
    content = rows()
    before = texts(load(tmp_path, content, stratify="label"))
    random.Random(0).shuffle(content)
    assert texts(load(tmp_path, content, stratify="label")) == before
    more = [{"text": f"new {i}", "label": "a", "title": "N"} for i in range(30)]
    later = texts(load(tmp_path, [*more, *content], stratify="label"))
    assert sum(len(part - later[split]) for split, part in before.items()) <= 6


def test_groups_can_be_stratified(tmp_path: Path) -> None:
    content = rows()
    title = {row["text"]: row["title"] for row in content}
    splits = load(tmp_path, content, stratify="label", group="title", validation_share=0.2, test_share=0.2)
    by_split = texts(splits)
    assert not {title[t] for t in by_split["train"]} & {title[t] for t in by_split["validation"]}
    assert 100 <= len(by_split["validation"]) <= 140


def test_a_stratified_sample_keeps_the_class_fractions_and_is_part_of_a_larger_one(tmp_path: Path) -> None:
    settings = {"stratify": "label", "validation_share": 0.2, "test_share": 0.2}
    full = load(tmp_path, rows(), **settings)
    few, many = (load(tmp_path, rows(), train_examples=n, **settings) for n in (30, 90))
    assert texts(few)["train"] < texts(many)["train"]
    for label, count in labels(full, "train").items():
        assert abs(labels(few, "train")[label] - count * 30 / len(full.rows["train"])) <= 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"group": "titel"}, r"mine.jsonl:1: no column 'titel' for data.group \(did you mean 'title'\?\)"),
        ({"stratify": "text"}, "data.stratify: 'text' has 600 different values in 600 rows; classes have few"),
        ({"group": "title", "validation": "mine.jsonl", "test": "mine.jsonl"}, "data.group: this source has all its"),
        ({"stratify": "label", "validation": "mine.jsonl", "test": "mine.jsonl"}, "data.stratify: this source has"),
    ],
)
def test_a_group_or_stratify_that_cannot_apply_is_refused(
    tmp_path: Path, settings: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        load(tmp_path, rows(), **settings)


def leaky(folder: Path, **settings: Any) -> Splits:
    test = [{"text": text, "label": "z"} for text in ("Text  7", " text 8\n", "TEXT 9", "another", "text 70")]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test))
    return load(folder, rows(60), test=str(folder / "test.jsonl"), validation_share=0.1, **settings)


def test_the_same_input_up_to_case_and_space_is_a_leak_for_any_target(tmp_path: Path) -> None:
    splits = leaky(tmp_path)
    train = texts(splits)["train"]
    assert splits.leaks == {"validation": 0, "test": len(train & {"text 7", "text 8", "text 9"})}
    assert splits.leaks["test"] >= 2


def test_leaks_are_removed_from_train_and_counted(tmp_path: Path) -> None:
    before, after = leaky(tmp_path), leaky(tmp_path, drop_leaks=True)
    removed = texts(before)["train"] - texts(after)["train"]
    assert removed == texts(before)["train"] & {"text 7", "text 8", "text 9"}
    assert after.leaks == {"validation": 0, "test": 0}
    assert after.skipped["train"] == {"leaks": len(removed)}
    assert texts(after)["test"] == texts(before)["test"]


def test_if_all_of_train_leaks_there_is_nothing_to_train_on(tmp_path: Path) -> None:
    path = str(tmp_path / "mine.jsonl")
    with pytest.raises(UserError, match=r"data.drop_leaks: all of train of .* is in validation or test too"):
        load(tmp_path, rows(20), validation=path, test=path, drop_leaks=True)


@pytest.mark.slow
def test_conll_2003_has_its_known_leaks() -> None:
    from peftlab.data.hub import Hub

    splits = Hub(id="eriktks/conll2003", columns={"labels": "ner_tags"}).load(("tokens", "labels"), visible=("tokens",))
    assert splits.leaks == {"validation": 196, "test": 132}
    fewer = Hub(id="eriktks/conll2003", columns={"labels": "ner_tags"}, drop_leaks=True)
    assert fewer.load(("tokens", "labels"), visible=("tokens",)).leaks == {"validation": 0, "test": 0}
