"""Exact match and F1 of answers equal those of SQuAD's script."""

import pytest

from peftlab.metrics import load_metric


# By SQuAD's official script (evaluate-v2.0), computed by hand: normalized words in common.
@pytest.mark.parametrize(
    ("predicted", "answers", "exact", "f1"),
    [
        ("Denver Broncos", ["Denver Broncos", "Denver Broncos", "Denver Broncos"], 1.0, 1.0),
        ("the Broncos!", ["Denver Broncos"], 0.0, 2 / 3),
        ("A  Broncos, an", ["broncos"], 1.0, 1.0),  # articles, punctuation, case and spaces are ignored
        ("1976", ["1976", "in 1976"], 1.0, 1.0),  # the best of several answers
        ("Santa Clara, California", ["Levi's Stadium", "Santa Clara"], 0.0, 0.8),
        ("gold gold", ["gold"], 0.0, 2 / 3),  # a word counts as often as it occurs in both
        ("gold", ["silver"], 0.0, 0.0),
        ("", [], 1.0, 1.0),  # correctly no answer
        ("gold", [], 0.0, 0.0),
        ("", ["gold"], 0.0, 0.0),
        ("", ["the"], 1.0, 1.0),  # an answer of articles only is no answer
    ],
)
def test_squad_equals_the_official_script(predicted: str, answers: list[str], exact: float, f1: float) -> None:
    scores = load_metric("squad").compute(predictions=[predicted], references=[answers])
    assert scores == {"squad_f1": pytest.approx(f1), "squad_exact_match": exact}


def test_squad_scores_answerable_and_unanswerable_questions_separately() -> None:
    scores = load_metric("squad").compute(predictions=["gold", "", "x"], references=[["gold"], [], ["the"]])
    assert scores["squad_exact_match"] == pytest.approx(2 / 3)
    assert scores["squad_f1/answerable"] == 1.0
    assert scores["squad_f1/unanswerable"] == 0.5
