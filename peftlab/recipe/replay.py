"""Replay (Robins, 1995): training on examples of old data as well, so that the model does not forget it."""

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

    def mix(self, new: Splits, old: Splits, fields: Sequence[str]) -> Splits:
        """Return `new` with a fourth split "replay", without rows that occur in validation or test.

        Rows that agree in `fields` are the same.
        """
        held_out = input_hashes((row for split in SPLITS[1:] for row in new.rows[split]), fields)
        rows = [row for row in old.rows["train"] if input_hash(row, fields) not in held_out]
        count = replay_count(len(new.rows["train"]), self.share)
        mixed = new.rows | {"replay": [rows[i] for i in sample(rows, count, seed=self.data.split_seed)]}
        return dataclasses.replace(
            new,
            rows=mixed,
            source=f"{new.source}, replaying {old.source}",
            fingerprint=fingerprint(mixed),
            skipped={**new.skipped, "replay": old.skipped.get("train", {})},
        )


def replay_count(new: int, share: float) -> int:
    """Number of old examples that, together with `new` ones, are `share` of all.

    >>> replay_count(80, 0.2)
    20
    """
    return round(new * share / (1 - share))
