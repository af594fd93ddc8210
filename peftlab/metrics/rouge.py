"""ROUGE-1, ROUGE-2 and ROUGE-L (Lin, 2004), by rouge-score."""

from __future__ import annotations

import importlib.metadata
from typing import Any, ClassVar

import datasets
import evaluate
from rouge_score.rouge_scorer import RougeScorer

_CITATION = "Lin, 2004. ROUGE: A Package for Automatic Evaluation of Summaries. aclanthology.org/W04-1013"
KINDS = ("rouge1", "rouge2", "rougeL")


class Metric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """Mean F1 in [0, 1] over texts; words are stemmed, as papers on summaries do. Only a-z and 0-9 count as letters.

    >>> scores = Metric(keep_in_memory=True).compute(predictions=["two cats slept"], references=[["the cat sleeps"]])
    >>> round(scores["rouge1"], 4), scores["rouge2"]
    (0.3333, 0.0)
    """

    counted: ClassVar[dict[str, str]] = dict.fromkeys(KINDS, "mean")

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=str(self.__doc__),
            citation=_CITATION,
            inputs_description="predictions: a text each; references: its references, of which the nearest counts",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.List(datasets.Value("string"))}
            ),
        )

    def _compute(self, *, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        counts = self.counts(predictions=predictions, references=references)
        return {kind: float(sum(score for (score,) in rows) / len(rows)) for kind, rows in counts.items()}

    def counts(self, *, predictions: list[str], references: list[list[str]]) -> dict[str, list[list[float]]]:
        """Of each text its F1."""
        scorer = RougeScorer(list(KINDS), use_stemmer=True)
        scores = [scorer.score_multi(targets, text) for text, targets in zip(predictions, references, strict=True)]
        return {kind: [[score[kind].fmeasure] for score in scores] for kind in KINDS}

    @staticmethod
    def signature() -> str:
        return f"stemmer:yes|score:f1|mean:texts|rouge-score:{importlib.metadata.version('rouge-score')}"
