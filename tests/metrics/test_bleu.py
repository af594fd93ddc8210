"""BLEU and chrF equal those of sacreBLEU."""

import pytest

from peftlab.metrics import load_metric

# From sacrebleu's README.
SYSTEM = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]


TRANSLATIONS = [
    ["The dog bit the man.", "The dog had bit the man."],
    ["It was not unexpected.", "No one was surprised."],
    ["The man bit him first.", "The man had bitten the dog."],
]


def test_bleu_and_chrf_equal_the_published_examples_of_sacrebleu() -> None:
    for name, figure in (("bleu", 48.53), ("chrf", 59.73)):
        scores = load_metric(name).compute(predictions=SYSTEM, references=TRANSLATIONS)
        assert scores == {name: pytest.approx(figure, abs=0.005)}
