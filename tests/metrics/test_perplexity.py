"""Perplexity per target token."""

import pytest

from peftlab.errors import UserError
from peftlab.metrics import load_metric


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
