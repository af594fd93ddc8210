"""ROUGE equals that of rouge_score."""

import pytest

from peftlab.metrics import load_metric


def test_rouge_equals_the_published_example_of_rouge_score() -> None:
    # From rouge-score's README.
    target, text = "The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log."
    scores = load_metric("rouge").compute(predictions=[text], references=[["a cat", target]])  # the best counts
    # Unigrams: 6 of 8 and of 9; longest common subsequence: 5 of 8 and of 9.
    assert scores["rouge1"] == pytest.approx(2 * 0.75 * (6 / 9) / (0.75 + 6 / 9))
    assert scores["rougeL"] == pytest.approx(2 * 0.625 * (5 / 9) / (0.625 + 5 / 9))
    assert scores["rouge2"] == pytest.approx(2 * (2 / 7) * (2 / 8) / (2 / 7 + 2 / 8))


def test_rouge_stems_words() -> None:
    scores = load_metric("rouge").compute(predictions=["dogs running"], references=[["dog runs"]])
    assert scores["rouge1"] == 1.0
