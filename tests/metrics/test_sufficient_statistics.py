"""Sufficient statistics: summed over examples, they give the score of the library."""

import random
from typing import Any

import numpy as np
import pytest

from peftlab import metrics
from peftlab.statistics import aggregates

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
def test_summed_statistics_give_the_score_of_the_library(name: str) -> None:
    """For the examples themselves, and for bootstrap resamples of them."""
    columns = CASES[name]
    every = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    for draw in range(9):
        records = every if draw == 0 else CHANCE.choices(every, k=len(every))
        computed = metrics.sufficient_statistics([name], [[record] for record in records])
        assert [statistics.score for statistics in computed] == list(metrics.METRICS[name].aggregates)
        for statistics in computed:
            rows, aggregate = np.array(statistics.rows), aggregates.AGGREGATES[statistics.aggregate]
            score = rows.mean() if aggregate is None else aggregate(rows.sum(axis=0))
            assert score == pytest.approx(metrics.score([name], records)[statistics.score], abs=1e-10)
            assert len(statistics.rows) == len(records)


def test_bleu_of_few_words_is_that_of_the_library() -> None:
    """An order of n-grams without a match is smoothed; one without any n-gram makes the score 0."""
    for predicted, expected in (("a b c d", "a b x y"), ("a b c d", "a x y z"), ("a b", "a b"), ("", "a"), ("x", "a")):
        records = [{"predicted": predicted, "expected": [expected]}] * 2
        (statistics,) = metrics.sufficient_statistics(["bleu"], [[record] for record in records])
        assert aggregates.bleu(np.sum(statistics.rows, axis=0)) == pytest.approx(
            metrics.score(["bleu"], records)["bleu"]
        )


def test_chrf_of_few_characters_is_that_of_the_library() -> None:
    """An order that one of the texts is too short for is left out."""
    for predicted, expected in (("ab", "abc"), ("abcdefg", "abc"), ("", "a"), ("x", "a"), ("abcdef gh", "abcdxf gh")):
        records = [{"predicted": predicted, "expected": [expected]}] * 2
        (statistics,) = metrics.sufficient_statistics(["chrf"], [[record] for record in records])
        assert aggregates.chrf(np.sum(statistics.rows, axis=0)) == pytest.approx(
            metrics.score(["chrf"], records)["chrf"]
        )


def test_mcc_of_three_classes_has_no_statistics() -> None:
    assert metrics.sufficient_statistics(["mcc"], [[{"predicted": x, "expected": "a"}] for x in LABELS]) == []


def test_every_metric_with_statistics_is_tested() -> None:
    assert {name for name, metric in metrics.METRICS.items() if metric.aggregates} == CASES.keys()
