"""Perplexity: exp of the mean negative log-likelihood of the target tokens, all weighted equally."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

from peftlab.errors import UserError
from peftlab.metrics.metric import ColumnType, Metric


class Perplexity(Metric):
    """Perplexity: exp of the mean cross-entropy per target token, from 1; lower is better.

    Computed from sums per example, so that neither batch size nor number of processes changes it. Raises UserError if
    there are no target tokens, or if the mean exceeds 700 nats or is NaN.

    >>> scores = Perplexity().compute(nats=[3.0, 1.0], tokens=[1, 3])
    >>> scores["nats_per_token"], round(scores["perplexity"], 4)
    (1.0, 2.7183)
    """

    kind: Literal["perplexity"] = "perplexity"
    citation: ClassVar[str] = (
        "Jelinek, Mercer, Bahl & Baker, 1977. Perplexity: a measure of the difficulty of speech recognition tasks."
    )
    columns: ClassVar[Mapping[str, ColumnType]] = {"nats": "float", "tokens": "integer"}
    scores: ClassVar[tuple[str, ...]] = ("perplexity", "nats_per_token")
    aggregates: ClassVar[Mapping[str, str]] = {"perplexity": "perplexity"}

    def _compute(self, *, nats: list[float], tokens: list[int]) -> dict[str, float]:
        targets = sum(tokens)
        if not targets:
            raise UserError("perplexity: these examples have no target tokens")
        mean = math.fsum(nats) / targets
        if not mean < 700:  # also if NaN
            raise UserError(f"perplexity: {mean} nats per token: the model has diverged; lower training.learning_rate")
        return {"perplexity": math.exp(mean), "nats_per_token": mean}

    def sufficient_statistics(self, *, nats: list[float], tokens: list[int]) -> dict[str, list[list[float]]]:
        """Per example: summed cross-entropy in nats, number of target tokens."""
        return {"perplexity": [[float(n), float(t)] for n, t in zip(nats, tokens, strict=True)]}
