"""Metrics agree with the examples that the libraries they stand on publish, and need no network."""

import pytest

from peftlab.metrics import METRICS, load_metric, signatures

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


def test_entity_f1_is_strict() -> None:
    # conlleval would accept I-PER at the start of an entity; strict IOB2 does not.
    scores = load_metric("entity_f1").compute(predictions=[["I-PER", "I-PER"]], references=[["B-PER", "I-PER"]])
    assert scores["entity_f1"] == 0.0


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_loads_without_a_network_and_describes_itself(name: str) -> None:
    metric = load_metric(name)
    assert metric.description
    assert metric.citation


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
    scores = load_metric("squad").compute(predictions=["gold", "", "x"], references=[["gold"], [], []])
    assert scores["squad_exact_match"] == pytest.approx(2 / 3)
    assert scores["squad_f1/answerable"] == 1.0
    assert scores["squad_f1/unanswerable"] == 0.5


def test_rouge_is_rouge_scores_published_example() -> None:
    # Of rouge-score's README.
    target, text = "The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log."
    scores = load_metric("rouge").compute(predictions=[text], references=[target])
    # Unigrams: 6 of 8 and of 9; longest common subsequence: 5 of 8 and of 9.
    assert scores["rouge1"] == pytest.approx(2 * 0.75 * (6 / 9) / (0.75 + 6 / 9))
    assert scores["rougeL"] == pytest.approx(2 * 0.625 * (5 / 9) / (0.625 + 5 / 9))
    assert scores["rouge2"] == pytest.approx(2 * (2 / 7) * (2 / 8) / (2 / 7 + 2 / 8))


def test_rouge_stems_words() -> None:
    scores = load_metric("rouge").compute(predictions=["dogs running"], references=["dog runs"])
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


def test_one_reference_is_a_text() -> None:
    one = [[texts[0]] for texts in TRANSLATIONS]
    for name in ("bleu", "chrf"):
        metric = load_metric(name)
        several = metric.compute(predictions=SYSTEM, references=one)
        assert metric.compute(predictions=SYSTEM, references=[texts[0] for texts in TRANSLATIONS]) == several


def test_signatures_are_the_libraries_own() -> None:
    found = signatures(METRICS)
    assert found["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert found["chrf"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")
    assert "entity_f1" not in found
