"""ROUGE-1, ROUGE-2 and ROUGE-L (Lin, 2004), by rouge-score."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import ClassVar, Literal

from peftlab.metrics.metric import ColumnType, Metric


class Rouge(Metric):
    """ROUGE-1, ROUGE-2, ROUGE-L: F1 of shared n-grams and subsequences with references, in [0, 1]; higher is better.

    Mean over texts, each against its best reference. Words are stemmed, as is usual for summaries; only a-z and 0-9
    count as letters.

    >>> scores = Rouge().compute(predictions=["two cats slept"], references=[["the cat sleeps"]])
    >>> round(scores["rouge1"], 4), scores["rouge2"]
    (0.3333, 0.0)
    """

    kind: Literal["rouge"] = "rouge"
    citation: ClassVar[str] = (
        "Lin, 2004. ROUGE: A Package for Automatic Evaluation of Summaries. aclanthology.org/W04-1013"
    )
    columns: ClassVar[Mapping[str, ColumnType]] = {"predictions": "string", "references": "strings"}
    scores: ClassVar[tuple[str, ...]] = ("rouge1", "rouge2", "rougeL")
    aggregates: ClassVar[Mapping[str, str]] = dict.fromkeys(scores, "mean")

    def _compute(self, *, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        statistics = self.sufficient_statistics(predictions=predictions, references=references)
        return {name: float(sum(f1 for (f1,) in rows) / len(rows)) for name, rows in statistics.items()}

    def sufficient_statistics(
        self, *, predictions: list[str], references: list[list[str]]
    ) -> dict[str, list[list[float]]]:
        """F1 of each text."""
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(list(self.scores), use_stemmer=True)
        per_text = [scorer.score_multi(targets, text) for text, targets in zip(predictions, references, strict=True)]
        return {name: [[scores[name].fmeasure] for scores in per_text] for name in self.scores}

    def signature(self) -> str:
        return f"stemmer:yes|score:f1|mean:texts|rouge-score:{importlib.metadata.version('rouge-score')}"
