"""Perplexity: exp of the mean negative log-likelihood of all target tokens, each token with the same weight."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import datasets
import evaluate

from peftlab.errors import UserError

_CITATION = "Jelinek, Mercer, Bahl & Baker, 1977. Perplexity: a measure of the difficulty of speech recognition tasks."


class Metric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """Nats and numbers of targets in, example by example: sums, so that neither batches nor processes change it.

    >>> scores = Metric(keep_in_memory=True).compute(nats=[3.0, 1.0], tokens=[1, 3])
    >>> scores["nats_per_token"], round(scores["perplexity"], 4)
    (1.0, 2.7183)
    """

    counted: ClassVar[dict[str, str]] = {"perplexity": "perplexity"}

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=str(self.__doc__),
            citation=_CITATION,
            inputs_description="nats: of each example's targets together; tokens: how many targets they are",
            features=datasets.Features({"nats": datasets.Value("float64"), "tokens": datasets.Value("int64")}),
        )

    def _compute(self, *, nats: list[float], tokens: list[int]) -> dict[str, Any]:
        targets = sum(tokens)
        if not targets:
            raise UserError("perplexity: these examples have no target tokens")
        mean = math.fsum(nats) / targets
        if not mean < 700:  # nor is NaN
            raise UserError(f"perplexity: {mean} nats a token; the model has diverged, lower training.learning_rate")
        return {"perplexity": math.exp(mean), "nats_per_token": mean}

    def counts(self, *, nats: list[float], tokens: list[int]) -> dict[str, list[list[float]]]:
        """Of each example its nats and its targets."""
        return {"perplexity": [[float(n), float(t)] for n, t in zip(nats, tokens, strict=True)]}
