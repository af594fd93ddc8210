"""F1 of label sets equals that of scikit-learn."""

import pytest

from tests.metrics.test_metrics import compute


def test_f1_of_label_sets_equals_the_published_example_of_scikit_learn() -> None:
    predictions, references = [[], ["a", "b", "c"], ["a", "b"]], [[], ["a", "b", "c"], ["b", "c"]]
    scores = compute("multilabel_f1", predictions, references)
    per_label = [scores[f"f1/{name}"] for name in "abc"]
    assert per_label == [pytest.approx(0.66666667), 1.0, pytest.approx(0.66666667)]
    assert scores["macro_f1"] == pytest.approx(sum(per_label) / 3)
    assert scores["micro_f1"] == pytest.approx(0.8)  # 4 true positives, 1 false positive, 1 false negative
    assert scores["exact_match"] == pytest.approx(2 / 3)
