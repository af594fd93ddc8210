"""Metrics agree with the examples that the libraries they stand on publish, and need no network."""

import pytest

from peftlab.metrics import METRICS, load_metric
from peftlab.part import BadInput

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
    with pytest.raises(BadInput, match=r"^perplexity: "):
        load_metric("perplexity").compute(nats=nats, tokens=tokens)
