"""A weighted mix of data sets: each part has its share of the training rows."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from peftlab.component import Settings, tagged_union
from peftlab.data import leaks
from peftlab.data.data import SPLITS, Data, Split, fingerprint
from peftlab.data.examples import Row, Splits
from peftlab.data.files import Files
from peftlab.data.hub import Hub
from peftlab.data.splitting import sample
from peftlab.errors import UserError

if TYPE_CHECKING:
    PartData = Files | Hub
else:
    PartData = tagged_union({"files": Files, "hub": Hub}, default="hub", key="id")

OWN_KEYS = {"kind", "parts", "split_seed", "train_examples", "drop_leaks", "fingerprints"}


class Part(Settings):
    """One data set of a mix."""

    data: PartData = Field(examples=[{"train": "mine.jsonl"}])
    """The data set: a Hub id, or a mapping with files. Its splits are cut from it alone."""
    weight: float | None = Field(None, gt=0, le=1e6, examples=[2.0])
    """Share of the training rows, relative to the other parts. Null for all parts: every row once."""


class Mix(Data):
    """Several data sets: their training rows by weight, and all their validation and test rows.

    With weights the mix is just so large that every training row occurs; rows of the other parts are repeated, and the
    remainder is a seeded sample, the same in every epoch. `train_examples` sets another size.
    """

    kind: Literal["mix"] = "mix"
    parts: tuple[Part, ...] = Field(
        min_length=2,
        strict=False,
        examples=[[{"data": {"train": "a.jsonl"}, "weight": 2}, {"data": "org/name", "weight": 1}]],
    )
    """The data sets, each with its own columns and splits, and a weight."""

    @model_validator(mode="after")
    def _keys_and_weights_are_consistent(self) -> Self:
        fields = type(self).model_fields
        other = [name for name in fields if name not in OWN_KEYS and getattr(self, name) != fields[name].default]
        if other:
            raise ValueError(f"{other[0]} belongs to the data of a part: parts: [{{data: {{..., {other[0]}: ...}}}}]")
        if len({part.weight is None for part in self.parts}) > 1:
            raise ValueError("parts: a weight for each part was expected, or for none")
        return self

    @property
    def local(self) -> bool:
        return any(part.data.local for part in self.parts)

    def missing_files(self) -> list[str]:
        return [path for part in self.parts for path in part.data.missing_files()]

    def read(self) -> tuple[dict[str, list[Row]], str]:
        rows: dict[str, list[Row]] = {}
        sources = []
        for part in self.parts:
            read, source = part.data.read()
            sources.append(source)
            for split in read:
                rows.setdefault(split, []).extend(read[split])
        return rows, ", ".join(sources)

    def load(
        self,
        fields: Iterable[str],
        optional: Iterable[str] = (),
        *,
        normalize: Callable[[Row], Row] = lambda row: row,
        check: Callable[[Row], object] = lambda row: None,
        visible: Sequence[str] = (),
        scored: Sequence[Split] = SPLITS,
    ) -> Splits:
        fields, optional = tuple(fields), tuple(optional)
        visible = tuple(visible) or (*fields, *optional)
        parts = [
            part.data.load(fields, optional, normalize=normalize, check=check, visible=visible, scored=scored)
            for part in self.parts
        ]
        held_out = [[row for part in parts for row in part.rows[split]] for split in SPLITS[1:]]
        trains = [part.rows["train"] for part in parts]
        dropped = 0
        if self.drop_leaks:
            tested = leaks.input_hashes((row for rows in held_out for row in rows), visible)
            kept = [[row for row in rows if leaks.input_hash(row, visible) not in tested] for rows in trains]
            dropped = sum(map(len, trains)) - sum(map(len, kept))
            trains = kept
            if not all(trains):
                raise UserError("data.drop_leaks: all of train of one part is in validation or test too")
        counts = self._counts([len(rows) for rows in trains])
        train = [row for rows, count in zip(trains, counts, strict=True) for row in self._repeated(rows, count)]
        rows: dict[str, list[Row]] = dict(zip(SPLITS, [train, *held_out], strict=True))
        trained = leaks.input_hashes(train, visible)
        source = ", ".join(
            f"{part.source} ({count:,} of {len(rows):,} rows{'' if weight is None else f', weight {weight:g}'})"
            for part, count, rows, weight in zip(
                parts, counts, trains, (part.weight for part in self.parts), strict=True
            )
        )
        skipped = {
            split: dict(sum((Counter(part.skipped.get(split, {})) for part in parts), Counter())) for split in SPLITS
        }
        if dropped:
            skipped["train"]["leaks"] = skipped["train"].get("leaks", 0) + dropped
        leaked: dict[str, int] = {
            split: sum(leaks.input_hash(row, visible) in trained for row in rows[split]) for split in SPLITS[1:]
        }
        return Splits(
            rows,
            f"mix of {source}",
            fingerprint(rows),
            {split: reasons for split, reasons in skipped.items() if reasons},
            leaked,
        )

    def _counts(self, sizes: Sequence[int]) -> list[int]:
        """Number of training rows of each part, from the number that it has."""
        weights = [size if part.weight is None else part.weight for part, size in zip(self.parts, sizes, strict=True)]
        return mixed_counts(sizes, weights, self.train_examples)

    def _repeated(self, rows: Sequence[Row], count: int) -> list[Row]:
        """`count` of the rows: each as often as it fits, and a sample. Copies, because examples belong to one row."""
        rest = set(sample(rows, count % len(rows), seed=self.split_seed))
        times = [count // len(rows) + (position in rest) for position in range(len(rows))]
        return [dataclasses.replace(row) for row, number in zip(rows, times, strict=True) for _ in range(number)]


def mixed_counts(sizes: Sequence[int], weights: Sequence[float], total: int | None) -> list[int]:
    """Numbers of rows in proportion to the weights: `total` in all, or just so many that each part is complete.

    >>> mixed_counts([100, 30], [1, 1], None), mixed_counts([100, 30], [3, 1], 40)
    ([100, 100], [30, 10])
    """
    scale = max(size / weight for size, weight in zip(sizes, weights, strict=True))
    if total is not None:
        scale = total / sum(weights)
    return [max(1, round(weight * scale)) for weight in weights]
