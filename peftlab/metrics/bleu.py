"""BLEU (Papineni et al., 2002), by sacrebleu (Post, 2018)."""

from __future__ import annotations

from typing import Any, ClassVar

import datasets
import evaluate
from sacrebleu.metrics.bleu import BLEU

_CITATION = "Post, 2018. A Call for Clarity in Reporting BLEU Scores. aclanthology.org/W18-6319"


class Metric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """Of the corpus, from 0 to 100.

    >>> Metric(keep_in_memory=True).compute(predictions=["The dog bit the man."], references=[["The dog bit the man."]])
    {'bleu': 100.00000000000004}
    """

    counted: ClassVar[dict[str, str]] = {"bleu": "bleu"}

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=str(self.__doc__),
            citation=_CITATION,
            inputs_description="predictions: a text each; references: its references, as many for each",
            features=datasets.Features({"predictions": text, "references": datasets.List(text)}),
        )

    def _compute(self, *, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        return {"bleu": BLEU().corpus_score(predictions, list(zip(*references, strict=True))).score}

    def counts(self, *, predictions: list[str], references: list[list[str]]) -> dict[str, list[list[float]]]:
        """Of each text its length and the reference's, its n-grams of 1 to 4 that are found there, and all of them."""
        scorer = BLEU(effective_order=True)  # it warns otherwise, of single sentences; the counts are the same
        scores = [scorer.sentence_score(text, targets) for text, targets in zip(predictions, references, strict=True)]
        return {"bleu": [[float(n) for n in (s.sys_len, s.ref_len, *s.counts, *s.totals)] for s in scores]}

    @staticmethod
    def signature() -> str:
        bleu = BLEU()
        bleu.corpus_score(["a"], [["a"]])  # or it would not know that there is one reference
        return str(bleu.get_signature())
