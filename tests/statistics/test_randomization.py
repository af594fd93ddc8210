"""Approximate randomization, against exact tests."""

import itertools

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from peftlab.metrics import load_metric
from peftlab.statistics.aggregates import f1, macro_f1, stacked
from peftlab.statistics.bootstrap import Resampled, bootstrap
from peftlab.statistics.hypothesis_tests import compare, mcnemar, randomization_test
from tests.statistics.simulated import entities


def test_randomization_agrees_with_mcnemar_if_both_apply() -> None:
    one = bootstrap([[1] * 12 + [0] * 4 + [1] * 30])
    two = bootstrap([[0] * 12 + [1] * 4 + [1] * 30])
    assert randomization_test(one, two) == pytest.approx(mcnemar(one.counts[0, :, 0], two.counts[0, :, 0]), abs=0.01)


def test_randomization_agrees_with_scipys_permutation_test() -> None:
    generator = np.random.default_rng(0)
    one, two = generator.normal(0.3, 1, (2, 1, 12))
    two -= 0.5
    exact = stats.permutation_test(
        (one[0], two[0]), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=5000, vectorized=False
    )
    comparison = compare(bootstrap(one), bootstrap(two))
    assert comparison.p == pytest.approx(exact.pvalue, abs=0.015)
    assert comparison.test == "approximate randomization"


def test_randomization_of_an_f1_over_two_seeds_agrees_with_all_swaps() -> None:
    generator = np.random.default_rng(4)
    gold = generator.poisson(2, 8)
    one, two = (entities(generator, gold, spread)[:2] for spread in (0.0, 0.8))
    differences = []
    for swap in itertools.product([False, True], repeat=8):
        mask = np.array(swap)[None, :, None]
        left, right = np.where(mask, two, one).sum(axis=1), np.where(mask, one, two).sum(axis=1)
        differences.append(f1(left).mean() - f1(right).mean())
    exact = np.mean(np.abs(differences) >= abs(differences[0]) - 1e-12)
    assert randomization_test(bootstrap(one, f1), bootstrap(two, f1)) == pytest.approx(exact, abs=0.015)
    assert 0.02 < exact < 0.9


def test_randomization_of_a_macro_f1_agrees_with_all_swaps_if_one_model_predicts_an_extra_class() -> None:
    gold = list("aabbabba")
    answers = {"one": list("aabbabbA"), "two": list("abaabbaa")}
    tables = {
        name: load_metric("f1").sufficient_statistics(predictions=given, references=gold)["macro_f1"]
        for name, given in answers.items()
    }
    assert {len(rows[0]) for rows in tables.values()} == {6, 9}
    differences = []
    for swap in itertools.product([False, True], repeat=8):
        pairs = [(b, a) if s else (a, b) for s, a, b in zip(swap, *answers.values(), strict=True)]
        left, right = (f1_score(gold, side, average="macro", zero_division=0) for side in zip(*pairs, strict=True))
        differences.append(left - right)
    exact = np.mean(np.abs(differences) >= abs(differences[0]) - 1e-12)
    one, two = (bootstrap([rows], macro_f1) for rows in tables.values())
    assert randomization_test(one, two) == pytest.approx(exact, abs=0.015)
    assert randomization_test(two, one) == pytest.approx(exact, abs=0.015)
    assert 0.02 < exact < 0.9
    both = bootstrap(stacked(list(tables.values())), macro_f1)
    assert both.scores.tolist() == pytest.approx([one.scores[0], two.scores[0]])


def test_randomization_rejects_a_metric_undefined_on_some_swap() -> None:
    precision = lambda sums: sums[..., 0] / sums[..., 1]  # noqa: E731
    one, two = (bootstrap([counts], precision, resamples=1) for counts in ([[1, 1], [1, 1]], [[0, 1], [0, 1]]))
    one, two = (
        Resampled(np.array([counts], dtype=float), precision, side.scores, side.replicates, 0)
        for counts, side in (([[1, 1], [0, 0]], one), ([[0, 0], [1, 1]], two))
    )
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=r"swapped counts: .* NaN"):
        randomization_test(one, two)
