"""What a source of examples is asked, and what every source shares: columns, splits, few-shot."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from peftlab.examples import Row, Splits
from peftlab.part import BadInput, Part, nearest

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Data(Part):
    """Rows in three splits. A subclass reads them; splits that it lacks are cut from train by a seeded hash."""

    columns: dict[str, str] = Field(default={})  # the task's field -> the source's column, where the names differ
    validation_share: float = Field(0.1, ge=0, lt=1)  # of train, if the source has no validation split
    test_share: float = Field(0.1, ge=0, lt=1)  # of train, if the source has no test split
    split_seed: int = Field(0, ge=0)
    train_examples: int | None = Field(None, ge=1)  # keep so many, chosen by a seeded hash
    validation_examples: int | None = Field(None, ge=1)
    test_examples: int | None = Field(None, ge=1)

    @property
    def local(self) -> bool:
        """Whether the rows are in files of the user's own, which may change under the same name."""
        return False

    def read(self) -> tuple[dict[str, list[Row]], str]:
        """The source's rows by split under its own column names, and the source in words."""
        raise NotImplementedError

    def load(self, fields: Iterable[str], optional: Iterable[str] = ()) -> Splits:
        """Rows that carry `fields`, and those of `optional` that they have.

        Raises BadInput if a column is missing or a split is empty.
        """
        rows, source = self.read()
        rows = self._cut(rows)
        for split in SPLITS:
            if not rows.get(split):
                raise BadInput(f"data: the {split} split of {source} is empty")
        renamed = {
            split: [self._rename(row, tuple(fields), tuple(optional)) for row in rows[split]] for split in SPLITS
        }
        wanted = (self.train_examples, self.validation_examples, self.test_examples)
        kept: dict[str, list[Row]] = {
            split: self._keep(renamed[split], count) for split, count in zip(SPLITS, wanted, strict=True)
        }
        return Splits(kept, source, _fingerprint(kept))

    def _cut(self, rows: dict[str, list[Row]]) -> dict[str, list[Row]]:
        missing = {
            split: share
            for split, share in (("validation", self.validation_share), ("test", self.test_share))
            if split not in rows and share
        }
        if not missing or "train" not in rows:
            return rows
        everything = rows["train"]
        rows = {**rows, **{split: [] for split in missing}, "train": []}
        for row in everything:
            draw = _draw(row, self.split_seed)
            for split, share in missing.items():
                if draw < share:
                    rows[split].append(row)
                    break
                draw -= share
            else:
                rows["train"].append(row)
        return rows

    def _rename(self, row: Row, fields: tuple[str, ...], optional: tuple[str, ...]) -> Row:
        known = (*fields, *optional)
        unknown = [field for field in self.columns if field not in known]
        if unknown:
            raise BadInput(f"data.columns: the task has no field {unknown[0]!r}{nearest(unknown[0], known)}")
        found = {}
        for field in known:
            column = self.columns.get(field, field)
            if field in optional and field not in self.columns and row.fields.get(column) is None:
                continue
            if column not in row.fields:
                hint = nearest(column, row.fields) or f"; it has: {', '.join(map(str, row.fields))}"
                raise BadInput(f"{row.where}: no column {column!r} for the task's field {field!r}{hint}")
            found[field] = row.fields[column]
        return Row(row.where, found)

    def _keep(self, rows: list[Row], count: int | None) -> list[Row]:
        if count is None or count >= len(rows):
            return rows
        chosen = sorted(range(len(rows)), key=lambda i: (_draw(rows[i], self.split_seed), i))[:count]
        return [rows[i] for i in sorted(chosen)]


def _draw(row: Row, seed: int) -> float:
    """A number in [0, 1) that depends on nothing but the row's content and the seed."""
    digest = hashlib.sha256(f"{seed} {_canonical(row)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _canonical(row: Row) -> str:
    return json.dumps(dict(row.fields), sort_keys=True, ensure_ascii=False, default=str)


def _fingerprint(rows: dict[str, list[Row]]) -> str:
    digest = hashlib.sha256()
    for split in SPLITS:
        digest.update(f"{split} {len(rows[split])}\n".encode())
        for row in rows[split]:
            digest.update(_canonical(row).encode() + b"\n")
    return digest.hexdigest()
