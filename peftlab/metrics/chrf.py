"""chrF (Popović, 2015), by sacrebleu (Post, 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from peftlab.metrics.metric import ColumnType, Metric


class Chrf(Metric):
    """chrF: character n-gram F-score against references, 0 to 100; higher is better.

    One score for the corpus. Each text has one or several references, the same number for every text.

    >>> Chrf().compute(predictions=["The dog bit the man."], references=[["The dog bit the man."]])
    {'chrf': 100.0}
    """

    kind: Literal["chrf"] = "chrf"
    citation: ClassVar[str] = (
        "Popović, 2015. chrF: character n-gram F-score for automatic MT evaluation. aclanthology.org/W15-3049; "
        "Post, 2018. A Call for Clarity in Reporting BLEU Scores. aclanthology.org/W18-6319"
    )
    columns: ClassVar[Mapping[str, ColumnType]] = {"predictions": "string", "references": "strings"}
    scores: ClassVar[tuple[str, ...]] = ("chrf",)
    aggregates: ClassVar[Mapping[str, str]] = {"chrf": "chrf"}

    def _compute(self, *, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        from sacrebleu.metrics.chrf import CHRF

        return {"chrf": CHRF().corpus_score(predictions, list(zip(*references, strict=True))).score}

    def sufficient_statistics(
        self, *, predictions: list[str], references: list[list[str]]
    ) -> dict[str, list[list[float]]]:
        """For n-grams of order 1 to 6: those of the text, of its best reference, and of both."""
        from sacrebleu.metrics.chrf import CHRF

        rows = CHRF()._extract_corpus_statistics(predictions, list(zip(*references, strict=True)))
        return {"chrf": [[float(number) for number in row] for row in rows]}

    def signature(self) -> str:
        from sacrebleu.metrics.chrf import CHRF

        chrf = CHRF()
        chrf.corpus_score(["a"], [["a"]])  # sets the number of references that the signature states
        return str(chrf.get_signature())
