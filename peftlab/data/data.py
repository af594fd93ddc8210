"""What a source of examples is asked, and what every source shares: columns, splits, bad rows, leaks, few-shot."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from peftlab.component import Component
from peftlab.data import leaks
from peftlab.data.bad_rows import OnBadRow, apply_bad_row_policy
from peftlab.data.examples import Row, Splits
from peftlab.data.splitting import canonical, cut, sample, values
from peftlab.errors import UserError, nearest, printable

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Pair = tuple[Row, Row]  # as the source has it, and under the task's names


class Data(Component):
    """Rows in three splits. A subclass reads them; splits that it lacks are cut from train by a seeded hash."""

    columns: dict[str, str] = Field(default={})  # the task's field -> the source's column, where the names differ
    numbers: tuple[str, ...] = Field(default=(), strict=False)  # columns of numbers in a format that knows only text
    # Columns of lists in such a format -> what stands between the items, e.g. {label: "|"}; an empty cell has none.
    # Left out of the digest where there are none.
    lists: dict[str, Annotated[str, Field(min_length=1)]] = Field(default={}, exclude_if=operator.not_)
    validation_share: float = Field(0.1, ge=0, lt=1)  # of train, if the source has no validation split
    test_share: float = Field(0.1, ge=0, lt=1)  # of train, if the source has no test split
    split_seed: int = Field(0, ge=0)
    group: str | None = None  # a column: rows with the same value of it are cut into the same split
    stratify: str | None = None  # a column: each value of it is shared out alike, among splits and in samples
    train_examples: int | None = Field(None, ge=1)  # keep so many, chosen by a seeded hash
    validation_examples: int | None = Field(None, ge=1)
    test_examples: int | None = Field(None, ge=1)
    on_bad_row: OnBadRow = "error"  # skip leaves bad rows out and counts them
    drop_leaks: bool = False  # take out of train what is in validation or test too, but for case and white space

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Self:
        if self.validation_share + self.test_share >= 1:
            raise ValueError(
                f"validation_share {self.validation_share} + test_share {self.test_share}: nothing of train is left"
            )
        return self

    @property
    def local(self) -> bool:
        """Whether the rows are in files of the user's own, which may change under the same name."""
        return False

    def missing_files(self) -> list[str]:
        """The user's own files that are not there."""
        return []

    def read(self) -> tuple[dict[str, list[Row]], str]:
        """The source's rows by split under its own column names, and the source in words."""
        raise NotImplementedError

    def load(
        self,
        fields: Iterable[str],
        optional: Iterable[str] = (),
        *,
        check: Callable[[Row], object] = lambda row: None,
        visible: Sequence[str] = (),
        scored: Sequence[Split] = SPLITS,
    ) -> Splits:
        """Rows that carry `fields`, and those of `optional` that they have.

        `check` raises UserError for a row that will not do; rows that are alike in the fields `visible` to
        the model (default: all) are the same question. Raises UserError if a column is missing, a split empty, a row
        bad; of splits that are not `scored` none need be there.
        """
        fields, optional = tuple(fields), tuple(optional)
        read, source = self.read()
        self._check_columns(read, fields, optional)
        pairs: dict[str, list[Pair]] = {}
        skipped: dict[str, dict[str, int]] = {}
        for split, rows in read.items():
            named = [(row, self._named(row, fields, optional, check)) for row in rows]
            bad = [row for _, row in named if row.fault is not None]
            useless = bool(rows) and len(bad) == len(rows)  # as GLUE's test, whose labels were never published
            if useless and split not in scored:
                pairs[split] = []  # there, so that none is cut off from train
                continue
            what = f"the {split} split of {source}"
            try:
                skipped[split] = apply_bad_row_policy(bad, len(rows), what, self.on_bad_row)
            except UserError as error:
                hint = f"\n{what}: if it has no labels, take another one for it, or set score_test: false"
                raise UserError(f"{error}{hint if useless and split == 'test' else ''}") from None
            pairs[split] = [pair for pair in named if pair[1].fault is None]
        pairs = self._cut(pairs)
        for split in SPLITS:
            if split not in scored and (split not in read or read[split]):
                pairs.setdefault(split, [])
            elif not pairs.get(split):
                share = {"validation": self.validation_share, "test": self.test_share}.get(split)
                cure = f"; data.{split}_share: 0 cuts none from train" if share == 0 and split not in read else ""
                raise UserError(f"data: the {split} split of {source} is empty{cure}")
        visible = tuple(visible) or (*fields, *optional)
        if self.drop_leaks:
            asked = leaks.keys((row for split in SPLITS[1:] for _, row in pairs[split]), visible)
            fresh = [pair for pair in pairs["train"] if leaks.key(pair[1], visible) not in asked]
            if not fresh:
                raise UserError(f"data.drop_leaks: all of train of {source} is in validation or test too")
            dropped = len(pairs["train"]) - len(fresh)
            pairs["train"] = fresh
            skipped["train"] = skipped.get("train", {}) | ({"leaks": dropped} if dropped else {})
        wanted = (self.train_examples, self.validation_examples, self.test_examples)
        kept: dict[str, list[Row]] = {
            split: self._keep(pairs[split], count) for split, count in zip(SPLITS, wanted, strict=True)
        }
        seen = leaks.keys(kept["train"], visible)
        found: dict[str, int] = {
            split: sum(leaks.key(row, visible) in seen for row in kept[split]) for split in SPLITS[1:]
        }
        return Splits(kept, source, fingerprint(kept), skipped, found)

    def _check_columns(self, rows: Mapping[str, Sequence[Row]], fields: Sequence[str], optional: Sequence[str]) -> None:
        """Raise UserError for a column that no row has: that is the recipe's mistake, not a row's."""
        known = (*fields, *optional)
        unknown = [field for field in self.columns if field not in known]
        if unknown:
            raise UserError(f"data.columns: the task has no field {unknown[0]!r}{nearest(unknown[0], known)}")
        columns = [self.columns.get(field, field) for field in known]
        for option, named in (("numbers", self.numbers), ("lists", self.lists)):
            strange = [column for column in named if column not in columns]
            if strange:
                hint = nearest(strange[0], columns)
                raise UserError(f"data.{option}: {strange[0]!r} is the column of no field of the task{hint}")
        whole = [row for part in rows.values() for row in part if row.fault is None]
        there = dict.fromkeys(name for row in whole for name in row.fields)
        for field in known:
            column = self.columns.get(field, field)
            if field in optional and field not in self.columns:
                continue
            if whole and column not in there:
                raise UserError(f"{whole[0].where}: {_lacks(there, column, field)}")

    def _named(self, row: Row, fields: Sequence[str], optional: Sequence[str], check: Callable[[Row], object]) -> Row:
        """The row under the task's names, with a fault if it will not do."""
        if row.fault is not None:
            return row
        found = {}
        for field in (*fields, *optional):
            column = self.columns.get(field, field)
            if field in optional and row.fields.get(column) is None:
                continue
            if column not in row.fields:
                return Row(row.where, {}, f"{field}: {_lacks(row.fields, column, field)}")
            value = row.fields[column]
            if column in self.numbers and isinstance(value, str):
                try:
                    value = float(value)
                except ValueError:
                    return Row(row.where, {}, f"{field}: {value[:40]!r} is no number")
            if column in self.lists and isinstance(value, str):
                value = [item for part in value.split(self.lists[column]) if (item := part.strip())]
            found[field] = value
        if not found:
            return Row(row.where, {}, f"no column for any of the task's fields {', '.join((*fields, *optional))}")
        named = Row(row.where, found)
        try:
            check(named)
        except UserError as error:
            return Row(row.where, found, str(error).removeprefix(f"{row.where}: "))
        return named

    def _cut(self, pairs: dict[str, list[Pair]]) -> dict[str, list[Pair]]:
        missing = {
            split: share
            for split, share in (("validation", self.validation_share), ("test", self.test_share))
            if split not in pairs and share
        }
        if not missing or "train" not in pairs:
            sampled = any((self.train_examples, self.validation_examples, self.test_examples))
            for option, idle in (("group", self.group), ("stratify", None if sampled else self.stratify)):
                if idle is not None:
                    raise UserError(f"data.{option}: this source has all its splits and nothing is cut; leave it out")
            return pairs
        everything = pairs["train"]
        places = cut(
            [row for row, _ in everything],
            missing,
            seed=self.split_seed,
            group=self.group,
            stratify=self.stratify,
        )
        return pairs | {split: [everything[i] for i in positions] for split, positions in places.items()}

    def _keep(self, pairs: list[Pair], count: int | None) -> list[Row]:
        rows = [row for _, row in pairs]
        if count is None or count >= len(rows):
            return rows
        strata = None if self.stratify is None else values([row for row, _ in pairs], self.stratify)
        return [rows[i] for i in sample(rows, count, seed=self.split_seed, strata=strata)]


def fingerprint(rows: Mapping[str, Sequence[Row]]) -> str:
    """sha256 of the rows' content, split by split."""
    digest = hashlib.sha256()
    for split in sorted(rows, key=[*SPLITS, *sorted(rows)].index):
        digest.update(f"{split} {len(rows[split])}\n".encode())
        for row in rows[split]:
            digest.update(canonical(row.fields).encode() + b"\n")
    return digest.hexdigest()


def _lacks(there: Iterable[str], column: str, field: str) -> str:
    there = [printable(str(name)) for name in there]
    hint = nearest(column, there) or f"; it has: {', '.join(there)}"
    return f"no column {column!r} for the task's field {field!r}{hint}"
