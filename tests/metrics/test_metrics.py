"""Metrics agree with the examples that the libraries they stand on publish, and need no network."""

from typing import Any

import pytest

from peftlab.errors import UserError
from peftlab.metrics import METRICS, load_metric, score, signatures

# The example of seqeval's README.
REFERENCES = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
PREDICTIONS = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]


def test_entity_f1_is_seqevals_published_figure() -> None:
    scores = load_metric("entity_f1").compute(predictions=PREDICTIONS, references=REFERENCES)
    assert scores == {
        "entity_f1": 0.5,
        "entity_precision": 0.5,
        "entity_recall": 0.5,
        "token_accuracy": pytest.approx(0.8),
        "entity_f1/MISC": 0.0,
        "entity_f1/PER": 1.0,
    }


def test_an_entity_type_may_be_called_like_an_average() -> None:
    tags = [["B-micro avg", "O", "B-x avg"], ["B-LOC", "I-LOC", "O"]]
    found = [["B-micro avg", "O", "O"], ["B-LOC", "I-LOC", "O"]]
    scores = load_metric("entity_f1").compute(predictions=found, references=tags)
    assert {name: value for name, value in scores.items() if name.startswith("entity_f1")} == {
        "entity_f1": pytest.approx(0.8),
        "entity_f1/LOC": 1.0,
        "entity_f1/micro avg": 1.0,
        "entity_f1/x avg": 0.0,
    }


def test_without_an_entity_to_find_there_is_no_score_of_entities() -> None:
    assert load_metric("entity_f1").compute(predictions=[["B-LOC", "O"]], references=[["O", "O"]]) == {
        "token_accuracy": 0.5
    }


def test_entity_f1_is_strict() -> None:
    # conlleval would accept I-PER at the start of an entity; strict IOB2 does not.
    scores = load_metric("entity_f1").compute(predictions=[["I-PER", "I-PER"]], references=[["B-PER", "I-PER"]])
    assert scores["entity_f1"] == 0.0


def compute(name: str, predictions: list[Any], references: list[Any], **more: Any) -> dict[str, float]:
    scores: dict[str, float] = load_metric(name).compute(predictions=predictions, references=references, **more)
    return scores


def letters(numbers: list[int]) -> list[str]:
    return [str(number) for number in numbers]


def test_accuracy_and_f1_are_scikit_learns_published_figures() -> None:
    assert compute("accuracy", letters([0, 2, 1, 3]), letters([0, 1, 2, 3])) == {"accuracy": 0.5}
    scores = compute("f1", letters([0, 2, 1, 0, 0, 1]), letters([0, 1, 2, 0, 1, 2]))
    assert scores == {
        **{"macro_f1": pytest.approx(0.267, abs=5e-4), "micro_f1": pytest.approx(0.333, abs=5e-4)},
        **{"f1/0": pytest.approx(0.8), "f1/1": 0.0, "f1/2": 0.0},
    }


def test_f1_of_sets_is_scikit_learns_published_figure() -> None:
    predictions, references = [[], ["a", "b", "c"], ["a", "b"]], [[], ["a", "b", "c"], ["b", "c"]]
    scores = compute("multilabel_f1", predictions, references)
    each = [scores[f"f1/{name}"] for name in "abc"]
    assert each == [pytest.approx(0.66666667), 1.0, pytest.approx(0.66666667)]
    assert scores["macro_f1"] == pytest.approx(sum(each) / 3)
    assert scores["micro_f1"] == pytest.approx(0.8)  # four right, one too many, one missing
    assert scores["exact_match"] == pytest.approx(2 / 3)


def test_mcc_is_scikit_learns_published_figure() -> None:
    assert compute("mcc", letters([1, -1, 1, 1]), letters([1, 1, 1, -1])) == {"mcc": pytest.approx(-0.33, abs=5e-3)}


def test_regression_errors_are_scikit_learns_published_figures() -> None:
    scores = compute("regression_error", [2.5, 0.0, 2.0, 8.0], [3.0, -0.5, 2.0, 7.0])
    assert scores == {
        **{"rmse": pytest.approx(0.612, abs=5e-4), "mae": pytest.approx(0.5), "r2": pytest.approx(0.948, abs=1e-3)}
    }


def test_correlations_are_scipys_published_figures() -> None:
    scores = compute("pearson", [1.0, 2, 3, 4, 5, 6, 7], [10.0, 9, 2.5, 6, 4, 3, 2])
    assert scores == {"pearson": pytest.approx(-0.828503883588428, abs=1e-12)}
    scores = compute("spearman", [5.0, 6, 7, 8, 7], [1.0, 2, 3, 4, 5])
    assert scores == {"spearman": pytest.approx(0.8207826816681233, abs=1e-12)}


def test_calibration_error_is_that_of_scikit_learns_published_curve() -> None:
    # The curve is (0, 0.2), (0.5, 0.525), (1, 0.85) from 3, 2 and 4 answers.
    probability = [0.1, 0.2, 0.3, 0.4, 0.65, 0.7, 0.8, 0.9, 1.0]
    references = ["no"] * 4 + ["yes"] * 5
    scores = compute("calibration_error", ["yes"] * 9, references, probability=probability, bins=3)
    expected = 3 / 9 * 0.2 + 2 / 9 * 0.025 + 4 / 9 * 0.15
    assert scores == {"calibration_error": pytest.approx(expected)}


@pytest.mark.parametrize(
    ("name", "predictions", "references", "absent"),
    [
        ("mcc", ["a", "a"], ["a", "b"], "mcc"),
        ("mcc", ["a", "b"], ["a", "a"], "mcc"),
        ("pearson", [1.0, 1.0], [1.0, 2.0], "pearson"),
        ("pearson", [1.0], [1.0], "pearson"),
        ("spearman", [1.0, 2.0], [1.0, 1.0], "spearman"),
        ("regression_error", [1.0, 2.0], [1.0, 1.0], "r2"),
        ("multilabel_f1", [[]], [[]], "micro_f1"),
    ],
)
def test_what_is_undefined_is_absent(name: str, predictions: list[Any], references: list[Any], absent: str) -> None:
    assert absent not in compute(name, predictions, references)


def test_an_empty_prediction_is_a_miss_and_no_false_alarm() -> None:
    scores = compute("f1", ["a", ""], ["a", "b"])
    assert (scores["macro_f1"], scores["micro_f1"]) == (0.5, pytest.approx(2 / 3))


def test_a_metric_is_given_of_the_records_what_its_features_name() -> None:
    records = [{"predicted": "a", "expected": "b", "probability": 0.75, "text": "never mind"}]
    assert score(["accuracy", "calibration_error"], records) == {"accuracy": 0.0, "calibration_error": 0.75}


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_loads_without_a_network_and_describes_itself(name: str) -> None:
    metric = load_metric(name)
    assert metric.description
    assert metric.citation


def test_perplexity_weighs_tokens_and_is_torchs_exponential_of_the_mean() -> None:
    torch = pytest.importorskip("torch")
    logits = torch.randn(7, 11, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(7)
    nats = torch.nn.functional.cross_entropy(logits, targets, reduction="none").double()
    expected = float(torch.nn.functional.cross_entropy(logits, targets).exp())
    metric = load_metric("perplexity")
    for cuts in ([7], [1, 6], [2, 2, 3], [1] * 7, [0, 7]):  # however targets fall into examples
        parts = torch.split(nats, cuts)
        scores = metric.compute(nats=[float(part.sum()) for part in parts], tokens=cuts)
        assert scores["perplexity"] == pytest.approx(expected, rel=1e-6)
    means = [float(part.mean().exp()) for part in torch.split(nats, [1, 6])]
    assert sum(means) / 2 != pytest.approx(expected, rel=1e-3)  # as a mean over examples would have it


@pytest.mark.parametrize(("nats", "tokens"), [([1e6], [1]), ([float("nan")], [1]), ([0.0], [0])])
def test_perplexity_is_not_made_up(nats: list[float], tokens: list[int]) -> None:
    with pytest.raises(UserError, match=r"^perplexity: "):
        load_metric("perplexity").compute(nats=nats, tokens=tokens)


# Of SQuAD's official script (evaluate-v2.0), by hand: normalised words in common.
@pytest.mark.parametrize(
    ("predicted", "answers", "exact", "f1"),
    [
        ("Denver Broncos", ["Denver Broncos", "Denver Broncos", "Denver Broncos"], 1.0, 1.0),
        ("the Broncos!", ["Denver Broncos"], 0.0, 2 / 3),
        ("A  Broncos, an", ["broncos"], 1.0, 1.0),  # articles, marks, case and spaces do not count
        ("1976", ["1976", "in 1976"], 1.0, 1.0),  # the best of several
        ("Santa Clara, California", ["Levi's Stadium", "Santa Clara"], 0.0, 0.8),
        ("gold gold", ["gold"], 0.0, 2 / 3),  # a word counts as often as it stands in both
        ("gold", ["silver"], 0.0, 0.0),
        ("", [], 1.0, 1.0),  # no answer, rightly
        ("gold", [], 0.0, 0.0),
        ("", ["gold"], 0.0, 0.0),
        ("", ["the"], 1.0, 1.0),  # what is nothing but an article is no answer
    ],
)
def test_squad_counts_as_the_official_script_does(predicted: str, answers: list[str], exact: float, f1: float) -> None:
    scores = load_metric("squad").compute(predictions=[predicted], references=[answers])
    assert scores == {"squad_f1": pytest.approx(f1), "squad_exact_match": exact}


def test_squad_tells_answerable_questions_from_others_where_there_are_both() -> None:
    scores = load_metric("squad").compute(
        predictions=["gold", "", "x"], references=[["gold"], [], ["the"]]
    )  # of nothing
    assert scores["squad_exact_match"] == pytest.approx(2 / 3)
    assert scores["squad_f1/answerable"] == 1.0
    assert scores["squad_f1/unanswerable"] == 0.5


def test_rouge_is_rouge_scores_published_example() -> None:
    # Of rouge-score's README.
    target, text = "The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log."
    scores = load_metric("rouge").compute(predictions=[text], references=[["a cat", target]])  # the nearest counts
    # Unigrams: 6 of 8 and of 9; longest common subsequence: 5 of 8 and of 9.
    assert scores["rouge1"] == pytest.approx(2 * 0.75 * (6 / 9) / (0.75 + 6 / 9))
    assert scores["rougeL"] == pytest.approx(2 * 0.625 * (5 / 9) / (0.625 + 5 / 9))
    assert scores["rouge2"] == pytest.approx(2 * (2 / 7) * (2 / 8) / (2 / 7 + 2 / 8))


def test_rouge_stems_words() -> None:
    scores = load_metric("rouge").compute(predictions=["dogs running"], references=[["dog runs"]])
    assert scores["rouge1"] == 1.0


# Of sacrebleu's README.
SYSTEM = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
TRANSLATIONS = [
    ["The dog bit the man.", "The dog had bit the man."],
    ["It was not unexpected.", "No one was surprised."],
    ["The man bit him first.", "The man had bitten the dog."],
]


def test_bleu_and_chrf_are_sacrebleus_published_figures() -> None:
    for name, figure in (("bleu", 48.53), ("chrf", 59.73)):
        scores = load_metric(name).compute(predictions=SYSTEM, references=TRANSLATIONS)
        assert scores == {name: pytest.approx(figure, abs=0.005)}


def test_signatures_are_the_libraries_own() -> None:
    found = signatures(METRICS)
    assert found["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert found["chrf"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")
    assert "entity_f1" not in found
