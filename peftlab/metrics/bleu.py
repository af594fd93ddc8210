"""BLEU (Papineni et al., 2002), by sacrebleu (Post, 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from peftlab.metrics.metric import ColumnType, Metric


class Bleu(Metric):
    """BLEU: n-gram precision of generated texts against references, 0 to 100; higher is better.

    One score for the corpus. Each text has one or several references, the same number for every text.

    >>> Bleu().compute(predictions=["The dog bit the man."], references=[["The dog bit the man."]])
    {'bleu': 100.00000000000004}
    """

    kind: Literal["bleu"] = "bleu"
    citation: ClassVar[str] = "Post, 2018. A Call for Clarity in Reporting BLEU Scores. aclanthology.org/W18-6319"
    columns: ClassVar[Mapping[str, ColumnType]] = {"predictions": "string", "references": "strings"}
    scores: ClassVar[tuple[str, ...]] = ("bleu",)
    aggregates: ClassVar[Mapping[str, str]] = {"bleu": "bleu"}

    def _compute(self, *, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        from sacrebleu.metrics.bleu import BLEU

        return {"bleu": BLEU().corpus_score(predictions, list(zip(*references, strict=True))).score}

    def sufficient_statistics(
        self, *, predictions: list[str], references: list[list[str]]
    ) -> dict[str, list[list[float]]]:
        """Length of the text, length of the reference, matching n-grams of order 1 to 4, n-grams of order 1 to 4."""
        from sacrebleu.metrics.bleu import BLEU

        scorer = BLEU(effective_order=True)  # without it sacrebleu warns of single sentences; the counts are the same
        scores = [scorer.sentence_score(text, targets) for text, targets in zip(predictions, references, strict=True)]
        return {"bleu": [[float(n) for n in (s.sys_len, s.ref_len, *s.counts, *s.totals)] for s in scores]}

    def signature(self) -> str:
        from sacrebleu.metrics.bleu import BLEU

        bleu = BLEU()
        bleu.corpus_score(["a"], [["a"]])  # sets the number of references that the signature states
        return str(bleu.get_signature())
