"""Replay (Robins, 1995): examples of old data among the new ones, so that a model does not forget the old."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pydantic import Field

from peftlab.component import Settings
from peftlab.data import AnyData
from peftlab.data.data import SPLITS, fingerprint
from peftlab.data.examples import Splits
from peftlab.data.leaks import input_hash, input_hashes
from peftlab.data.splitting import sample


class Replay(Settings):
    """One sample of the old data's train split, the same in every epoch, shuffled among the new examples."""

    data: AnyData = Field(examples=[{"train": "old.jsonl"}])
    """The old data: a Hub id, or a mapping with files."""
    share: float = Field(0.2, gt=0, lt=1)
    """Fraction of all training examples that are old ones; less if the old data has too few."""

    def mixed(self, new: Splits, old: Splits, given: Sequence[str]) -> Splits:
        """`new` with a fourth split, "replay". What `new` is validated or tested on is never replayed."""
        tested = input_hashes((row for split in SPLITS[1:] for row in new.rows[split]), given)
        rows = [row for row in old.rows["train"] if input_hash(row, given) not in tested]
        count = replayed(len(new.rows["train"]), self.share)
        mixed = new.rows | {"replay": [rows[i] for i in sample(rows, count, seed=self.data.split_seed)]}
        return dataclasses.replace(
            new,
            rows=mixed,
            source=f"{new.source}, replaying {old.source}",
            fingerprint=fingerprint(mixed),
            skipped={**new.skipped, "replay": old.skipped.get("train", {})},
        )


def replayed(new: int, share: float) -> int:
    """How many old examples are `share` of all, beside `new` ones.

    >>> replayed(80, 0.2)
    20
    """
    return round(new * share / (1 - share))
