"""Metrics reproduce the published examples of the libraries that compute them, and need no network."""

import fnmatch
from typing import Any, Literal

import pytest

from peftlab.errors import UserError
from peftlab.metrics import METRICS, load_metric, prediction_keys, score, signatures
from peftlab.metrics.calibration_error import CalibrationError
from peftlab.metrics.metric import ColumnType, Metric

# From seqeval's README.
REFERENCES = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
PREDICTIONS = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]


def test_entity_f1_equals_the_published_example_of_seqeval() -> None:
    scores = load_metric("entity_f1").compute(predictions=PREDICTIONS, references=REFERENCES)
    assert scores == {
        "entity_f1": 0.5,
        "entity_precision": 0.5,
        "entity_recall": 0.5,
        "token_accuracy": pytest.approx(0.8),
        "entity_f1/MISC": 0.0,
        "entity_f1/PER": 1.0,
    }


def test_an_entity_type_may_be_named_like_an_average_of_the_report() -> None:
    tags = [["B-micro avg", "O", "B-x avg"], ["B-LOC", "I-LOC", "O"]]
    found = [["B-micro avg", "O", "O"], ["B-LOC", "I-LOC", "O"]]
    scores = load_metric("entity_f1").compute(predictions=found, references=tags)
    assert {name: value for name, value in scores.items() if name.startswith("entity_f1")} == {
        "entity_f1": pytest.approx(0.8),
        "entity_f1/LOC": 1.0,
        "entity_f1/micro avg": 1.0,
        "entity_f1/x avg": 0.0,
    }


def test_without_expected_entities_only_token_accuracy_is_defined() -> None:
    assert load_metric("entity_f1").compute(predictions=[["B-LOC", "O"]], references=[["O", "O"]]) == {
        "token_accuracy": 0.5
    }


def test_entity_f1_requires_an_entity_to_begin_with_b() -> None:
    # conlleval accepts I-PER at the start of an entity; strict IOB2 does not.
    scores = load_metric("entity_f1").compute(predictions=[["I-PER", "I-PER"]], references=[["B-PER", "I-PER"]])
    assert scores["entity_f1"] == 0.0


def compute(name: str, predictions: list[Any], references: list[Any]) -> dict[str, float]:
    return load_metric(name).compute(predictions=predictions, references=references)


def strings(numbers: list[int]) -> list[str]:
    return [str(number) for number in numbers]


def test_accuracy_and_f1_equal_the_published_examples_of_scikit_learn() -> None:
    assert compute("accuracy", strings([0, 2, 1, 3]), strings([0, 1, 2, 3])) == {"accuracy": 0.5}
    scores = compute("f1", strings([0, 2, 1, 0, 0, 1]), strings([0, 1, 2, 0, 1, 2]))
    assert scores == {
        **{"macro_f1": pytest.approx(0.267, abs=5e-4), "micro_f1": pytest.approx(0.333, abs=5e-4)},
        **{"f1/0": pytest.approx(0.8), "f1/1": 0.0, "f1/2": 0.0},
    }


def test_f1_of_label_sets_equals_the_published_example_of_scikit_learn() -> None:
    predictions, references = [[], ["a", "b", "c"], ["a", "b"]], [[], ["a", "b", "c"], ["b", "c"]]
    scores = compute("multilabel_f1", predictions, references)
    per_label = [scores[f"f1/{name}"] for name in "abc"]
    assert per_label == [pytest.approx(0.66666667), 1.0, pytest.approx(0.66666667)]
    assert scores["macro_f1"] == pytest.approx(sum(per_label) / 3)
    assert scores["micro_f1"] == pytest.approx(0.8)  # 4 true positives, 1 false positive, 1 false negative
    assert scores["exact_match"] == pytest.approx(2 / 3)


def test_mcc_equals_the_published_example_of_scikit_learn() -> None:
    assert compute("mcc", strings([1, -1, 1, 1]), strings([1, 1, 1, -1])) == {"mcc": pytest.approx(-0.33, abs=5e-3)}


def test_regression_errors_equal_the_published_examples_of_scikit_learn() -> None:
    scores = compute("regression_error", [2.5, 0.0, 2.0, 8.0], [3.0, -0.5, 2.0, 7.0])
    assert scores == {
        **{"rmse": pytest.approx(0.612, abs=5e-4), "mae": pytest.approx(0.5), "r2": pytest.approx(0.948, abs=1e-3)}
    }


def test_correlations_equal_the_published_examples_of_scipy() -> None:
    scores = compute("pearson", [1.0, 2, 3, 4, 5, 6, 7], [10.0, 9, 2.5, 6, 4, 3, 2])
    assert scores == {"pearson": pytest.approx(-0.828503883588428, abs=1e-12)}
    scores = compute("spearman", [5.0, 6, 7, 8, 7], [1.0, 2, 3, 4, 5])
    assert scores == {"spearman": pytest.approx(0.8207826816681233, abs=1e-12)}


def test_calibration_error_follows_from_the_published_curve_of_scikit_learn() -> None:
    # The curve is (0, 0.2), (0.5, 0.525), (1, 0.85) from 3, 2 and 4 answers.
    probability = [0.1, 0.2, 0.3, 0.4, 0.65, 0.7, 0.8, 0.9, 1.0]
    references = ["no"] * 4 + ["yes"] * 5
    metric = CalibrationError(bins=3)
    scores = metric.compute(predictions=["yes"] * 9, references=references, probability=probability)
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
def test_an_undefined_score_is_absent(name: str, predictions: list[Any], references: list[Any], absent: str) -> None:
    assert absent not in compute(name, predictions, references)


def test_an_empty_prediction_is_a_false_negative_but_no_false_positive() -> None:
    scores = compute("f1", ["a", ""], ["a", "b"])
    assert (scores["macro_f1"], scores["micro_f1"]) == (0.5, pytest.approx(2 / 3))


def test_a_metric_reads_the_keys_of_a_record_that_its_columns_name() -> None:
    records = [{"predicted": "a", "expected": "b", "probability": 0.75, "text": "not read"}]
    assert score(["accuracy", "calibration_error"], records) == {"accuracy": 0.0, "calibration_error": 0.75}


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_loads_without_a_network_and_describes_itself(name: str) -> None:
    first_line = (METRICS[name].__doc__ or "").splitlines()[0]
    assert "higher is better" in first_line or "lower is better" in first_line
    assert load_metric(name).citation


EXAMPLES: dict[ColumnType, list[Any]] = {
    "string": ["a", "b", "b"],
    "strings": [["a"], ["b"], ["a"]],
    "float": [0.25, 0.5, 1.0],
    "integer": [1, 2, 3],
}


@pytest.mark.parametrize("name", METRICS)
def test_names_of_scores_are_known_without_computing_them(name: str) -> None:
    metric = load_metric(name)
    columns = {column: EXAMPLES[type_] for column, type_ in metric.columns.items()}
    if name == "entity_f1":
        columns = {column: [["B-A", "O"], ["B-A", "I-A"]] for column in columns}
    scores = metric.compute(**columns)
    assert all(any(fnmatch.fnmatchcase(score, pattern) for pattern in metric.scores) for score in scores)
    assert all("*" in pattern or pattern in scores for pattern in metric.scores)
    assert metric.aggregates.keys() <= set(metric.scores)
    assert metric.sufficient_statistics(**columns).keys() <= metric.aggregates.keys()


def test_prediction_keys_are_those_that_the_model_predicted() -> None:
    keys = prediction_keys(["accuracy", "calibration_error", "perplexity"])
    assert keys == ["nats", "predicted", "probability", "tokens"]


def test_a_metric_that_lacks_an_obligatory_part_is_refused_and_the_part_is_named() -> None:
    with pytest.raises(TypeError, match="Nameless lacks the class attribute citation, scores"):

        class Nameless(Metric):
            kind: Literal["nameless"] = "nameless"
            columns = {"predictions": "string"}  # noqa: RUF012

    class Abstract(Metric):
        pass

    with pytest.raises(TypeError, match=r"Can't instantiate abstract class Abstract.*_compute"):
        Abstract(kind="abstract")


def test_perplexity_is_exp_of_the_mean_cross_entropy_per_token() -> None:
    torch = pytest.importorskip("torch")
    logits = torch.randn(7, 11, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(7)
    nats = torch.nn.functional.cross_entropy(logits, targets, reduction="none").double()
    expected = float(torch.nn.functional.cross_entropy(logits, targets).exp())
    metric = load_metric("perplexity")
    for cuts in ([7], [1, 6], [2, 2, 3], [1] * 7, [0, 7]):  # however the targets are distributed over examples
        parts = torch.split(nats, cuts)
        scores = metric.compute(nats=[float(part.sum()) for part in parts], tokens=cuts)
        assert scores["perplexity"] == pytest.approx(expected, rel=1e-6)
    means = [float(part.mean().exp()) for part in torch.split(nats, [1, 6])]
    assert sum(means) / 2 != pytest.approx(expected, rel=1e-3)  # which a mean over examples would give


@pytest.mark.parametrize(("nats", "tokens"), [([1e6], [1]), ([float("nan")], [1]), ([0.0], [0])])
def test_perplexity_without_targets_or_of_a_diverged_model_is_an_error(nats: list[float], tokens: list[int]) -> None:
    with pytest.raises(UserError, match=r"^perplexity: "):
        load_metric("perplexity").compute(nats=nats, tokens=tokens)


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


def test_signatures_come_from_the_libraries() -> None:
    found = signatures(METRICS)
    assert found["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert found["chrf"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")
    assert "entity_f1" not in found
