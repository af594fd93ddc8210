"""The cache of encoded examples: reused if nothing has changed, rebuilt if anything differs or is damaged."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from peftlab.data.examples import Encoded, Example, Row, Splits
from peftlab.loading import encoded_cache
from peftlab.loading.encoding import encode
from peftlab.loading.model import load_tokenizer
from peftlab.models.model import ModelFiles
from peftlab.tasks import Task
from peftlab.tasks.token_classification import TokenClassification


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PEFTLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "encoded"


class Counting:
    """A task that counts its encodings."""

    def __init__(self, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        original = type(task).encode

        def encode(inner: Any, *args: Any) -> Encoded:
            self.calls += 1
            return original(inner, *args)

        monkeypatch.setattr(type(task), "encode", encode)


@pytest.fixture
def once(tagging: Task, addresses: Splits, minilm: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`once(limit=64)` encodes the addresses; `.calls` counts the encodings by the task."""
    counting = Counting(tagging, monkeypatch)
    tokenizer = load_tokenizer(minilm, tagging)

    def run(
        task: Task = tagging, limit: int = 128, rows: list[Row] | None = None, files: ModelFiles = minilm
    ) -> Encoded:
        given = addresses.rows["train"] if rows is None else rows
        return encode(task, given, tokenizer, limit, files=files, what="train", on_bad_row="error")[0]

    run.counting = counting  # type: ignore[attr-defined]
    return run


def test_a_cached_entry_equals_what_was_encoded(once: Any, cache: Path) -> None:
    first, second = once(), once()
    assert once.counting.calls == 1
    assert second == first
    assert [e.row for e in second.examples] == [e.row for e in first.examples]
    assert {type(n) for e in second.examples for piece in e.features.values() for n in piece} == {int}
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]


def test_whatever_changes_the_examples_is_encoded_again(
    once: Any, tagging: Task, addresses: Splits, minilm: ModelFiles
) -> None:
    once()
    changed = [
        {"limit": 127},
        {"task": tagging.model_copy(update={"truncate": True})},
        {"task": TokenClassification(labels=[*reversed(tagging.model_dump()["labels"])])},
        {"rows": addresses.rows["train"][1:]},
        {"rows": addresses.rows["train"][::-1]},
    ]
    changed.append({"files": dataclasses.replace(minilm, fingerprint="another")})
    for number, change in enumerate(changed, start=2):
        once(**change)
        assert once.counting.calls == number, change


@pytest.mark.parametrize("place", [0.01, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "appended"])
def test_a_damaged_entry_is_rebuilt(once: Any, cache: Path, damage: str, place: float) -> None:
    first = once()
    (path,) = cache.iterdir()
    content = bytearray(path.read_bytes())
    position = int(len(content) * place)
    if damage == "flipped":
        content[position] ^= 4
    path.write_bytes(
        {"flipped": content, "cut": content[:position], "emptied": b"", "appended": content + b"x"}[damage]
    )
    assert once() == first
    assert once.counting.calls == 2
    assert once() == first
    assert once.counting.calls == 2


def test_an_entry_of_another_key_is_not_used(once: Any, cache: Path) -> None:
    first = once()
    (path,) = cache.iterdir()
    once(limit=100)
    (other,) = set(cache.iterdir()) - {path}
    assert first == once()
    assert other != path


def test_a_cache_that_cannot_be_written_does_not_end_the_run(
    once: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("PEFTLAB_CACHE", str(tmp_path / "file"))
    assert once() == once()
    assert once.counting.calls == 2


@pytest.mark.parametrize("value", [0.5, True, "a", [1], 2**40])
def test_values_that_would_not_be_read_back_equal_are_not_cached(cache: Path, value: Any) -> None:
    rows = [Row("here:1", {})]
    encoded = Encoded([Example({"input_ids": [1, 2], "labels": [value]}, rows[0])], {})
    encoded_cache.store("0" * 32, rows, encoded)
    assert encoded_cache.load("0" * 32, rows) is None
    assert not cache.exists() or not list(cache.iterdir())


def test_windows_of_a_row_and_different_lengths_are_cached(cache: Path) -> None:
    rows = [Row("here:1", {}), Row("here:2", {})]
    examples = [
        Example({"input_ids": [1, 2], "labels": []}, rows[1]),
        Example({"input_ids": [3], "labels": [-100, 7, 9]}, rows[1]),
        Example({"input_ids": [4, 5, 6], "labels": [1]}, rows[0]),
    ]
    encoded_cache.store("1" * 32, rows, Encoded(examples, {"lost": 2}))
    assert encoded_cache.load("1" * 32, rows) == Encoded(examples, {"lost": 2})


def test_the_least_recently_used_entries_are_deleted_above_the_limit(
    once: Any, addresses: Splits, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = addresses.rows["train"]
    once(rows=rows[:10])
    (first,) = cache.iterdir()
    once(rows=rows[:11])
    os.utime(first, (0, 0))
    once(rows=rows[:10])  # used again, so the younger of the two
    monkeypatch.setattr(encoded_cache, "MAX_BYTES", int(2.5 * first.stat().st_size))
    once(rows=rows[:12])
    assert once.counting.calls == 3
    assert first in set(cache.iterdir())
    assert len(list(cache.iterdir())) == 2
