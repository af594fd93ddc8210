"""A malformed recipe is refused at once with file, line and key; none crashes, hangs or exhausts memory."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftlab.errors import UserError
from peftlab.recipe import load_recipe
from tests.faults.conftest import counted

GOOD = """\
model: sentence-transformers/all-MiniLM-L6-v2
task: token_classification
data: {train: rows.jsonl, columns: {labels: tags}}
method: {kind: lora, rank: 8, targets: [query, value]}
quantization: {kind: nf4, double_quantization: true}
training:
  epochs: 2
  batch_tokens: 512
  learning_rate: 1e-3
seeds: 1
"""
RECIPES = sorted((Path(__file__).parent.parent.parent / "recipes").glob("*.yaml"))

# Text of a line, its replacement, and what the message must contain.
WRONG = {
    "a tab": ("  epochs: 2", "\tepochs: 2", ":7: a tab cannot indent"),
    "an open bracket": ("[query, value]", "[query, value", ":"),
    "an open quote": ("task: token_classification", "task: 'token_classification", ":"),
    "a duplicate key": ("seeds: 1", "seeds: 1\nseeds: 2", ":11: duplicate key 'seeds'"),
    "a duplicate key within": ("rank: 8", "rank: 8, rank: 9", ":4: duplicate key 'rank'"),
    "a near miss": ("rank: 8", "rnak: 8", ":4: method.rnak: unknown key (did you mean 'rank'?)"),
    "an unknown section": ("seeds: 1", "seed: 1", ":10: seed: unknown key (use seeds)"),
    "an unknown kind": ("kind: lora", "kind: lorra", ":4: method.kind: unknown kind 'lorra' (did you mean 'lora'?)"),
    "no kind": ("{kind: lora, rank: 8, targets: [query, value]}", "{}", ":4: method: needs a 'kind'"),
    "a word for a number": ("rank: 8", "rank: eight", ":4: method.rank:"),
    "a number for a word": ("task: token_classification", "task: 8", ":2: task:"),
    "no": ("double_quantization: true", "double_quantization: no", ":5: quantization.double_quantization:"),
    "yes": ("double_quantization: true", "double_quantization: yes", ":5: quantization.double_quantization:"),
    "a number as text": ("rank: 8", "rank: '8'", ":4: method.rank:"),
    "a fraction for a count": ("rank: 8", "rank: 8.5", ":4: method.rank:"),
    "zero": ("rank: 8", "rank: 0", ":4: method.rank:"),
    "negative": ("epochs: 2", "epochs: -2", ":7: training.epochs:"),
    "absurdly many": ("epochs: 2", "epochs: 1e300", ":7: training.epochs:"),
    "infinite": ("1e-3", ".inf", ":9: training.learning_rate:"),
    "not a number": ("1e-3", ".nan", ":9: training.learning_rate:"),
    "a number of many digits": ("rank: 8", f"rank: {'9' * 5000}", ":4:"),
    "a deep number": ("1e-3", "1e-999999999", ":9: training.learning_rate:"),
    "nothing": ("model: sentence-transformers/all-MiniLM-L6-v2", "model:", ":1: model:"),
    "a list for a section": ("training:", "training: []", ":"),
    "a list for a word": ("task: token_classification", "task: [token_classification]", ":2: task:"),
    "a mapping for a number": ("rank: 8", "rank: {value: 8}", ":4: method.rank:"),
    "two that exclude each other": ("epochs: 2", "epochs: 2\n  steps: 9", ": give epochs or steps"),
    "an impossible pair": ("kind: lora, rank: 8, targets: [query, value]", "kind: full", ":4: method: full"),
    "an alias bomb": ("seeds: 1", "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", ":10: anchors and aliases"),
    "a merge key": ("seeds: 1", "<<: {seeds: 1}", ":10: <<: unknown key"),
    "a depth bomb": ("seeds: 1", f"seeds: {'[' * 5000}{']' * 5000}", ":10: nested deeper than"),
    "a depth bomb of mappings": ("seeds: 1", f"seeds: {'{a: ' * 5000}1{'}' * 5000}", ":10: nested deeper than"),
    "a Python object": ("seeds: 1", "seeds: !!python/object/apply:os.mkdir [executed]", ":10: the tag"),
    "a tag": ("seeds: 1", "seeds: !!int 1", ":10: the tag"),
    "two documents": ("seeds: 1", "---\nseeds: 1", ":"),
    "a path out of its folder as a name": ("seeds: 1", "name: ../../etc/passwd", ":10: name:"),
    "an absolute name": ("seeds: 1", "name: /tmp/x", ":10: name:"),
    "a hidden name": ("seeds: 1", "name: .x", ":10: name:"),
    "a long name": ("seeds: 1", f"name: {'x' * 65}", ":10: name:"),
    "a name of many lines": ("seeds: 1", 'name: "x\\ny"', ":10: name:"),
    "an address as a model": ("all-MiniLM-L6-v2", "https://host/x?y", ":1: model"),
    "a NUL": ("seeds: 1", "seeds: \0", ":10: a character that YAML does not allow"),
    "half a surrogate": ("seeds: 1", 'description: "\\ud800"', ":10:"),
    "a key that is a list": ("seeds: 1", "[a, b]: 1", ":10: a key must be a scalar"),
    "a key that is a mapping": ("seeds: 1", "{a: b}: 1", ":10: a key must be a scalar"),
    "an empty key": ("seeds: 1", ": 1", ":10:"),
    "a seed past 64 bits": ("seeds: 1", "seeds: 99999999999999999999", ":10: seeds"),
    "a negative seed": ("seeds: 1", "seeds: -1", ":10: seeds"),
    "a date": ("seeds: 1", "seeds: 2024-01-01", ":10: seeds"),
    "an octal": ("seeds: 1", "seeds: 0o17", ":10: seeds"),
    "sixty": ("rank: 8", "rank: 1:30", ":4: method.rank:"),
    "just text": (GOOD, "lora on conll please", ":1: a mapping of keys to values was expected"),
    "just a list": (GOOD, "- lora\n- conll", ":1: a mapping of keys to values was expected"),
    "empty": (GOOD, "", ":1: a mapping of keys to values was expected"),
    "a comment": (GOOD, "# nothing", ":1: a mapping of keys to values was expected"),
    "JSON cut off": (GOOD, '{"model": "x", ', ":"),
}
RAW = {
    "UTF-16": (GOOD.encode("utf-16"), "not UTF-8"),
    "Latin-1": (GOOD.encode() + "description: caf\u00e9".encode("latin-1"), ":11: not UTF-8: byte 0xe9"),
    "binary": (bytes(range(256)), "not UTF-8"),
    "a pickle": (b"\x80\x04K\x01.", "not UTF-8"),
    "a gigabyte begun": (b"a: " + b"x" * 300_000, "too long: more than"),
}


def refusal(folder: Path, content: bytes) -> str:
    path = folder / "mine.yaml"
    path.write_bytes(content)
    begun = time.process_time()
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert time.process_time() - begun < 1
    return str(caught.value).replace(str(path), "")


@pytest.mark.parametrize(("old", "new", "says"), WRONG.values(), ids=WRONG)
def test_a_malformed_recipe_is_refused_with_line_and_key(old: str, new: str, says: str, tmp_path: Path) -> None:
    assert old in GOOD
    text = refusal(tmp_path, GOOD.replace(old, new).encode("utf-8", "surrogatepass"))
    assert says in text
    assert text.startswith(":")
    assert "Traceback" not in text
    assert len(text) < 2000


@pytest.mark.parametrize(("content", "says"), RAW.values(), ids=RAW)
def test_a_file_that_is_not_text_is_refused(content: bytes, says: str, tmp_path: Path) -> None:
    assert says in refusal(tmp_path, content)


ODD = [*("1e-4", "no", "~", "lora", "nf4", "../x", "*a", "&a", "!!int 1"), *"[{\t'\"%@`", "- "]
MARKS = [*"[]{}:,&*!|>'\"%@`#-?\t\n \0", "  ", "- ", ": ", "...", "---", "\ufeff", "\u2028"]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from(ODD)
)  # fmt: skip
PIECES = st.sampled_from([*GOOD.splitlines(keepends=True), *MARKS])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
SECTIONS = ["model", "task", "data", "method", "quantization", "training", "seeds", "name"]
KEYS = st.sampled_from([*SECTIONS, "training.epochs", "method.rank", "data.columns"])
OVERRIDES = st.one_of(
    st.text(max_size=30),
    st.tuples(
        st.sampled_from([*SECTIONS, "method.rank", "training.epochs", "model.id", "a.b.c", "data.columns.x"]),
        SCALARS.map(str),
    ).map("=".join),
)


@st.composite
def corrupted(draw: st.DrawFn) -> bytes:
    """A valid recipe, corrupted in a few places."""
    text = draw(st.sampled_from(RECIPES)).read_text()
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 12)))
        text = text[:start] + draw(st.one_of(PIECES, SCALARS.map(str))) + text[end:]
    content = text.encode("utf-8", "surrogatepass")
    if draw(st.booleans()):
        content = bytearray(content)
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content)


def verdict(path: Path, *overrides: str) -> str:
    """The error message for the recipe, empty if it is valid; fails if it takes too long."""
    begun = time.process_time()
    try:
        load_recipe(path, overrides)
        said = ""
    except UserError as error:
        said = str(error)
    assert time.process_time() - begun < 2
    assert len(said) < 10_000
    assert all(line.isprintable() for line in said.split("\n"))
    return said


def judge(content: bytes, folder: Path) -> None:
    path = folder / "fuzz.yaml"
    path.write_bytes(content)
    said = verdict(path)
    assert not said or all(line.startswith(f"{path}:") for line in said.split("\n")), said


FUZZ = settings(
    max_examples=counted(120, 20_000),
    deadline=None,
    derandomize=counted(1, 0) == 1,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@FUZZ
@given(content=corrupted())
def test_a_corrupted_recipe_is_valid_or_refused(content: bytes, tmp_path: Path) -> None:
    judge(content, tmp_path)


@FUZZ
@given(values=VALUES, key=KEYS)
def test_any_value_under_any_key_is_valid_or_refused(values: object, key: str, tmp_path: Path) -> None:
    import yaml

    recipe = yaml.safe_load(GOOD)
    *parents, last = key.split(".")
    inner = recipe
    for parent in parents:
        inner = inner[parent]
    inner[last] = values
    judge(yaml.safe_dump(recipe, allow_unicode=True).encode("utf-8", "surrogatepass"), tmp_path)


@FUZZ
@given(override=OVERRIDES)
def test_any_override_is_valid_or_refused(override: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    verdict(path, override)
