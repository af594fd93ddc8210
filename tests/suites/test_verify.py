"""Verify and reproduce: a number that is not what its predictions or another run give is found."""

import gzip
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftlab import metrics
from peftlab.errors import UserError
from peftlab.runs.run import run
from peftlab.statistics import aggregates
from peftlab.suites.adopt import adopt
from peftlab.suites.collect import collect
from peftlab.suites.reproduce import compare, reproduce
from peftlab.suites.store import Counted, Store, packed, read_record
from peftlab.suites.suite_file import load_suite
from peftlab.suites.verify import verify

SUITE = """\
seeds: [1]
model: sentence-transformers/all-MiniLM-L6-v2
task: token_classification
data:
  id: datamade/usaddress
  columns: {labels: ner_tags}
  train_examples: 12
  validation_examples: 6
  test_examples: 30
training: {steps: 3, batch_tokens: 128, precision: float32}
trials: {points: 1}
reference: head
quantizations: [none]
tasks: {addresses: {}}
methods:
  head: {method: head, learning_rate: 1e-2}
"""


@pytest.fixture(scope="module")
def stored_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suites") / "tiny"
    folder.mkdir()
    (folder / "suite.yaml").write_text(SUITE)
    suite = load_suite(folder)
    recipe = suite.recipe(next(suite.rows()), learning_rate=1e-2, seed=1, trial=False)
    run(recipe, folder.with_name("runs") / "one")
    assert adopt(folder, folder.with_name("runs"), lambda line: None) == 1
    return folder


def test_a_text_may_hold_what_elsewhere_ends_a_line(stored_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(stored_run.with_name("runs") / "one", tmp_path / "one"))
    record, whole = collect(folder)
    path = folder / "predictions.jsonl"
    first, *others = path.read_text().split("\n")
    altered = json.loads(first)
    altered["tokens"][0] = "caf\x85e\u2028"  # Rotten Tomatoes has such
    path.write_text("\n".join([json.dumps(altered, ensure_ascii=False), *others]))
    assert collect(folder) == (record, whole)


def wrong(folder: Path) -> list[str]:
    (verdict,) = verify(folder)
    return verdict.wrong


def altered(folder: Path, target: Path, change: dict[str, Any]) -> Path:
    """A copy whose result says something else."""
    copy = Path(shutil.copytree(folder, target / "tiny"))
    (path,) = (copy / "results").glob("*.json")
    values = json.loads(path.read_text())
    for split, scores in change.get("metrics", {}).items():
        values["result"]["metrics"][split] |= scores
    values["result"] |= {key: value for key, value in change.items() if key != "metrics"}
    path.write_text(json.dumps(values))
    return copy


def test_an_untouched_result_is_what_its_predictions_give(stored_run: Path) -> None:
    assert wrong(stored_run) == []


def test_a_suite_that_is_not_there_is_not_taken_for_the_one_around_it(stored_run: Path) -> None:
    with pytest.raises(UserError, match="mine: no such suite"):
        wrong(stored_run / "mine")


def test_a_metric_that_was_changed_is_found(stored_run: Path, tmp_path: Path) -> None:
    copy = altered(stored_run, tmp_path, {"metrics": {"test": {"token_accuracy": 0.999}}})
    (line,) = wrong(copy)
    assert line.startswith("test token_accuracy: says 0.999, its predictions give 0.")


def test_a_prediction_that_was_changed_is_found(stored_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(stored_run, tmp_path / "tiny"))
    (stored,) = Store(copy).records().values()
    predictions = stored.predictions()
    tags = predictions.kept["test"]["predicted"]
    tags[0] = ["B-AddressNumber" if tag != "B-AddressNumber" else "O" for tag in tags[0]]
    stored.predictions_path.write_bytes(packed(predictions))
    assert [line for line in wrong(copy) if line.startswith("test token_accuracy: says")]


def test_counts_that_were_changed_are_found(stored_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(stored_run, tmp_path / "tiny"))
    (stored,) = Store(copy).records().values()
    predictions = stored.predictions()
    predictions.counts["test"][0].rows[0][0] += 1
    stored.predictions_path.write_bytes(packed(predictions))
    assert wrong(copy) == ["test: its counts are not those of its predictions"]


@pytest.mark.parametrize(
    ("where", "value", "says"),
    [
        (["kept", "test"], {}, "test: no predicted among its predictions"),
        (["kept", "test", "predicted", 0], 5, "test: its predictions cannot be scored: ValueError: "),
        (["kept", "test", "predicted", 0], ["O"], "test: its predictions cannot be scored: ValueError: "),
        (["kept", "test", "predicted", 0, 0], "Zebra", "test: its predictions cannot be scored: KeyError: 'Z'"),
        (["counts"], {}, "counts of nothing, but scores of validation, test"),
        (["counts", "test", 0, "form"], "other", "'other' is none of mean, f1, "),
        (["counts", "test", 0, "rows", 0], [1.0], "rows of entity_f1 differ in length"),
    ],
)
def test_predictions_that_no_run_would_leave_are_a_line(
    stored_run: Path, tmp_path: Path, where: list[Any], value: object, says: str
) -> None:
    copy = Path(shutil.copytree(stored_run, tmp_path / "tiny"))
    (path,) = (copy / "results").glob("*.gz")
    values = inner = json.loads(gzip.decompress(path.read_bytes()))
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    path.write_bytes(gzip.compress(json.dumps(values).encode()))
    (line,) = wrong(copy)
    assert says in line


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"state": "done"', '"state": "failed"', "failed, with a result"),
        (
            '"validation": {\n    "entity_f1"',
            '"dev": {\n    "entity_f1"',
            "scores of dev, test; wanted are validation, test",
        ),
    ],
)
def test_a_record_that_no_run_would_leave_is_a_line(
    stored_run: Path, tmp_path: Path, old: str, new: str, says: str
) -> None:
    copy = Path(shutil.copytree(stored_run, tmp_path / "tiny"))
    (path,) = (copy / "results").glob("*.json")
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=rf"{path.name}: {says}"):
        Store(copy).records()


def test_other_data_and_missing_predictions_are_said(stored_run: Path, tmp_path: Path) -> None:
    copy = altered(stored_run, tmp_path, {"data_fingerprint": "0" * 64})
    assert wrong(copy)[0].startswith("its data were others: fingerprint 000000000000, here ")
    (stored,) = Store(copy).records().values()
    stored.predictions_path.unlink()
    assert "cannot be read" in wrong(copy)[0]


def test_a_run_made_again_is_the_same_to_the_bit_tensors_too(stored_run: Path) -> None:
    (path,) = (stored_run / "results").glob("*.json")
    found = reproduce(path)
    assert found.same, found.differences
    assert found.verdict.startswith("bit-equal: ")


@pytest.mark.parametrize(("shift", "says"), [(0.01, "within the interval"), (0.9, "NOT reproduced: outside")])
def test_another_score_is_within_the_interval_or_not(stored_run: Path, shift: float, says: str) -> None:
    (path,) = (stored_run / "results").glob("*.json")
    stored = read_record(path)
    again = read_record(path).record
    assert again.result is not None
    again.result.metrics["test"]["entity_f1"] += shift
    found = compare(stored, stored.predictions(), again, stored.predictions())
    assert not found.same
    assert found.verdict.startswith(says)


def test_other_tensors_are_not_the_same_to_the_bit(stored_run: Path) -> None:
    (path,) = (stored_run / "results").glob("*.json")
    stored = read_record(path)
    again = stored.record.model_copy(update={"tensors": dict.fromkeys(stored.record.tensors, "0" * 64)})
    found = compare(stored, stored.predictions(), again, stored.predictions())
    assert not found.same
    assert found.within
    assert [line for line in found.differences if line.startswith("tensors: ")]


def test_what_is_counted_since_then_is_no_difference_and_other_predictions_are_one(stored_run: Path) -> None:
    (path,) = (stored_run / "results").glob("*.json")
    stored = read_record(path)
    again = stored.predictions()
    more = Counted(score="other", form="mean", rows=[[1.0]])
    newer = again.model_copy(update={"counts": {split: [*part, more] for split, part in again.counts.items()}})
    assert compare(stored, again, stored.record, newer).same
    assert not compare(stored, newer, stored.record, again).same  # and what was counted then must be there now
    tags = again.kept["test"]["predicted"]
    other = again.model_copy(update={"kept": {**again.kept, "test": {"predicted": [*tags[:-1], ["O"]]}}})
    assert not compare(stored, again, stored.record, other).same


def test_what_has_no_result_cannot_be_reproduced(stored_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(stored_run, tmp_path / "tiny"))
    (path,) = (copy / "results").glob("*.json")
    values = json.loads(path.read_text())
    path.write_text(json.dumps({"state": "timed out", "reason": "r", "recipe": values["result"]["recipe"]}))
    with pytest.raises(UserError, match="timed out; there is no result to reproduce"):
        reproduce(path)


def test_a_score_that_its_split_does_not_define_cannot_be_reproduced(stored_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(stored_run, tmp_path / "tiny"))
    (path,) = (copy / "results").glob("*.json")
    values = json.loads(path.read_text())
    del values["result"]["metrics"]["test"]["entity_f1"]
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="entity_f1 is undefined on its test split: nothing to compare"):
        reproduce(path)


CHANCE = random.Random(0)
LABELS = "abc"
WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog"]
TEXTS = [" ".join(CHANCE.choices(WORDS, k=CHANCE.randint(1, 9))) for _ in range(80)]
NUMBERS = [CHANCE.gauss(40, 3) for _ in range(50)]
CASES: dict[str, dict[str, list[Any]]] = {
    "accuracy": {"predicted": CHANCE.choices(LABELS, k=50), "expected": CHANCE.choices(LABELS, k=50)},
    "mcc": {"predicted": CHANCE.choices("ab", k=50), "expected": CHANCE.choices("aab", k=50)},
    "squad": {
        "predicted": ["the Broncos", "x", ""] * 3, "expected": [["Denver Broncos", "x"], ["a y"], []] * 3,
    },
    "multilabel_f1": {
        key: [[x for x in LABELS if CHANCE.random() < 0.5] for _ in range(50)] for key in metrics.RECORD_KEYS.values()
    },
    "entity_f1": {
        "predicted": [CHANCE.choices(["O", "B-A", "I-A", "B-B"], k=9) for _ in range(50)],
        "expected": [["B-A", "I-A", "O", "B-B", "O", "O", "B-A", "I-A", "I-A"]] * 50,
    },
    "f1": {"predicted": CHANCE.choices(["a", "b", "c", ""], k=50), "expected": CHANCE.choices("aabcd", k=50)},
    "rouge": {"predicted": TEXTS[:40], "expected": [[text] for text in TEXTS[40:]]},
    "bleu": {"predicted": [*TEXTS[:39], ""], "expected": [[text] for text in TEXTS[40:]]},
    "chrf": {"predicted": [*TEXTS[:38], "", "xyz"], "expected": [[text, "on a mat"] for text in TEXTS[40:]]},
    "perplexity": {
        "nats": [CHANCE.expovariate(0.1) for _ in range(50)], "tokens": [CHANCE.randint(1, 9) for _ in range(50)],
    },
    "pearson": {"predicted": [n + CHANCE.gauss(0, 2) for n in NUMBERS], "expected": NUMBERS},
    "regression_error": {"predicted": [n + CHANCE.gauss(0, 2) for n in NUMBERS], "expected": NUMBERS},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_summed_counts_make_the_score_of_the_library(name: str) -> None:
    """On the examples themselves, and on draws of them as the bootstrap makes them."""
    columns = CASES[name]
    every = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    for draw in range(9):
        records = every if draw == 0 else CHANCE.choices(every, k=len(every))
        found = metrics.sufficient_statistics([name], [[record] for record in records])
        assert [counts.score for counts in found] == list(metrics.METRICS[name].aggregates)
        for counts in found:
            rows, aggregate = np.array(counts.rows), aggregates.AGGREGATES[counts.aggregate]
            score = rows.mean() if aggregate is None else aggregate(rows.sum(axis=0))
            assert score == pytest.approx(metrics.score([name], records)[counts.score], abs=1e-10)
            assert len(counts.rows) == len(records)


def test_bleu_of_few_words_is_the_librarys() -> None:
    """An order of n-grams without any found is smoothed; one that was never written makes it 0."""
    for predicted, expected in (("a b c d", "a b x y"), ("a b c d", "a x y z"), ("a b", "a b"), ("", "a"), ("x", "a")):
        records = [{"predicted": predicted, "expected": [expected]}] * 2
        (counts,) = metrics.sufficient_statistics(["bleu"], [[record] for record in records])
        assert aggregates.bleu(np.sum(counts.rows, axis=0)) == pytest.approx(metrics.score(["bleu"], records)["bleu"])


def test_chrf_of_few_characters_is_the_librarys() -> None:
    """An order that one of the texts does not have is left out."""
    for predicted, expected in (("ab", "abc"), ("abcdefg", "abc"), ("", "a"), ("x", "a"), ("abcdef gh", "abcdxf gh")):
        records = [{"predicted": predicted, "expected": [expected]}] * 2
        (counts,) = metrics.sufficient_statistics(["chrf"], [[record] for record in records])
        assert aggregates.chrf(np.sum(counts.rows, axis=0)) == pytest.approx(metrics.score(["chrf"], records)["chrf"])


def test_mcc_of_three_classes_has_no_counts() -> None:
    assert metrics.sufficient_statistics(["mcc"], [[{"predicted": x, "expected": "a"}] for x in LABELS]) == []


def test_every_metric_with_counts_is_tested_here() -> None:
    assert {name for name, metric in metrics.METRICS.items() if metric.aggregates} == CASES.keys()
