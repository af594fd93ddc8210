"""chrF (Popović, 2015): F-score of character n-grams, by sacrebleu (Post, 2018)."""

from __future__ import annotations

from typing import Any, ClassVar

import datasets
import evaluate
from sacrebleu.metrics.chrf import CHRF

_CITATION = (
    "Popović, 2015. chrF: character n-gram F-score for automatic MT evaluation. aclanthology.org/W15-3049; "
    "Post, 2018. A Call for Clarity in Reporting BLEU Scores. aclanthology.org/W18-6319"
)


class Metric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """Of the corpus, from 0 to 100.

    >>> Metric(keep_in_memory=True).compute(predictions=["The dog bit the man."], references=[["The dog bit the man."]])
    {'chrf': 100.0}
    """

    counted: ClassVar[dict[str, str]] = {"chrf": "chrf"}

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=str(self.__doc__),
            citation=_CITATION,
            inputs_description="predictions: a text each; references: its references, as many for each",
            features=datasets.Features({"predictions": text, "references": datasets.List(text)}),
        )

    def _compute(self, *, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        return {"chrf": CHRF().corpus_score(predictions, list(zip(*references, strict=True))).score}

    def counts(self, *, predictions: list[str], references: list[list[str]]) -> dict[str, list[list[float]]]:
        """Of each text, for n-grams of 1 to 6: those written, wanted and found, against the nearest reference."""
        found = CHRF()._extract_corpus_statistics(predictions, list(zip(*references, strict=True)))
        return {"chrf": [[float(number) for number in row] for row in found]}

    @staticmethod
    def signature() -> str:
        chrf = CHRF()
        chrf.corpus_score(["a"], [["a"]])  # or it would not know that there is one reference
        return str(chrf.get_signature())
