"""Interface of a data source, and the steps that all sources share: columns, bad rows, splits, leaks, samples."""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from peftlab.component import Component
from peftlab.data import leaks
from peftlab.data.bad_rows import OnBadRow, apply_bad_row_policy
from peftlab.data.columns import ColumnMapping
from peftlab.data.examples import Row, Splits, Unreadable
from peftlab.data.splitting import canonical, classes, sample, split_rows
from peftlab.errors import UserError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Pair = tuple[Row, Row]  # a row as the source has it, and under the task's names


class Data(Component, abc.ABC):
    """Interface that every data source implements: rows in the splits train, validation and test.

    A source is one file in this package. Obligatory: `kind` and `read`. Optional: `local` and `missing_files`. A split
    that the source lacks is cut off from train, by a seeded hash of the rows' content.
    """

    columns: dict[str, str] = Field(default={})
    """Column of the source for each field of the task, where the names differ, e.g. {labels: ner_tags}. A path reads a
    nested value, e.g. {source: translation.en}, or makes a part of a field, e.g. {answers.text: answer_text}."""
    numbers: tuple[str, ...] = Field(default=(), strict=False)
    """Columns whose text is read as a number, for formats that know only text, such as CSV; e.g. [stars]."""
    # Left out of the digest if empty.
    lists: dict[str, Annotated[str, Field(min_length=1)]] = Field(default={}, exclude_if=operator.not_)
    """Columns whose text is read as a list, with the separator of the items, e.g. {label: "|"}. An empty cell is an
    empty list."""
    labels_from: tuple[str, ...] = Field(
        default=(), strict=False, exclude_if=operator.not_, examples=[["toxic", "insult"]]
    )
    """Columns of 0 and 1, one per label: the row's labels are the columns that are 1, for problem: multi_label."""
    validation_share: float = Field(0.1, ge=0, lt=1)
    """Fraction of train that becomes the validation split, if the source has none. 0: none is cut off."""
    test_share: float = Field(0.1, ge=0, lt=1)
    """Fraction of train that becomes the test split, if the source has none. 0: none is cut off."""
    split_seed: int = Field(0, ge=0)
    """Seed of the splits and samples."""
    group: str | None = None
    """Column whose equal values stay in the same split when splits are cut, e.g. author."""
    stratify: str | None = None
    """Column of classes that keep their frequencies in the splits that are cut and in samples, e.g. label."""
    train_examples: int | None = Field(None, ge=1)
    """Number of rows to keep of train, a seeded sample, e.g. 1000. Null: all."""
    validation_examples: int | None = Field(None, ge=1)
    """Number of rows to keep of validation, a seeded sample, e.g. 200. Null: all."""
    test_examples: int | None = Field(None, ge=1)
    """Number of rows to keep of test, a seeded sample, e.g. 200. Null: all."""
    on_bad_row: OnBadRow = "error"
    """`error`: report bad rows and stop before training. `skip`: leave them out and count them, up to a tenth of a
    split."""
    drop_leaks: bool = False
    """Remove rows from train whose input occurs in validation or test too, up to case and white space. They are counted
    in any case."""

    fingerprints: dict[str, str] = Field(default={}, exclude_if=operator.not_, examples=[{"train": "5891b5b5"}])
    """sha256 of the user's files, by split. Written into records, where they take the place of the paths in the
    digest; leave it out."""

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Self:
        if self.validation_share + self.test_share >= 1:
            raise ValueError(
                f"validation_share {self.validation_share} + test_share {self.test_share}: nothing of train is left"
            )
        return self

    @property
    def local(self) -> bool:
        """True if the rows are in files of the user, which may change under the same name."""
        return False

    def content_fingerprints(self) -> dict[str, str]:
        """sha256 of the user's files by split; empty if there are none, or if one cannot be read."""
        return {}

    def missing_files(self) -> list[str]:
        """The user's files that do not exist."""
        return []

    @abc.abstractmethod
    def read(self) -> tuple[dict[str, list[Row]], str]:
        """The source's rows by split, under its own column names, and a description of the source for people.

        Raises UserError if the source cannot be read. A row that cannot be read has a fault.
        """

    def missing_column_hint(self) -> str:
        """Ending of the message about a missing column."""
        return ""

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
        """Rows by split with the task's `fields`, and with those of the `optional` fields that they have.

        `normalize` brings a row into the form that `check` expects; both raise UserError for a bad row. Rows with equal
        `visible` fields, those that the model sees (default: all), are the same input. Splits that are not `scored` may
        be absent, and their rows may all be bad. Raises UserError if a column is missing, a split empty or a row bad.
        """
        mapping = ColumnMapping(
            tuple(fields), tuple(optional), self.columns, self.numbers, self.lists, self.labels_from
        )
        rows, source = self.read()
        mapping.check(rows, self.missing_column_hint())
        named = {
            split: [(_readable(row), mapping.apply(row, normalize, check)) for row in part]
            for split, part in rows.items()
        }
        pairs, skipped = self._without_bad_rows(named, source, scored)
        pairs = self._cut_missing_splits(pairs)
        self._require_rows(pairs, rows, source, scored)
        visible = tuple(visible) or mapping.fields
        if self.drop_leaks:
            pairs["train"], dropped = _without_leaks(pairs, visible, source)
            skipped["train"] = skipped.get("train", {}) | ({"leaks": dropped} if dropped else {})
        counts = (self.train_examples, self.validation_examples, self.test_examples)
        samples: dict[str, list[Row]] = {
            split: self._sample(pairs[split], count) for split, count in zip(SPLITS, counts, strict=True)
        }
        trained = leaks.input_hashes(samples["train"], visible)
        leaked: dict[str, int] = {
            split: sum(leaks.input_hash(row, visible) in trained for row in samples[split]) for split in SPLITS[1:]
        }
        return Splits(samples, source, fingerprint(samples), skipped, leaked)

    def _without_bad_rows(
        self,
        rows: Mapping[str, list[Pair]],
        source: str,
        scored: Sequence[str],
    ) -> tuple[dict[str, list[Pair]], dict[str, dict[str, int]]]:
        """The good rows of each split, and the number of skipped ones by split and reason."""
        pairs: dict[str, list[Pair]] = {}
        skipped: dict[str, dict[str, int]] = {}
        for split, part in rows.items():
            bad = [row for _, row in part if row.fault is not None]
            all_bad = bool(part) and len(bad) == len(part)  # e.g. GLUE's test split, whose labels are not published
            if all_bad and split not in scored:
                pairs[split] = []  # present, so that none is cut off from train
                continue
            name = f"the {split} split of {source}"
            try:
                skipped[split] = apply_bad_row_policy(bad, len(part), name, self.on_bad_row)
            except UserError as error:
                hint = f"\n{name}: if it has no labels, use another split for it, or set score_test: false"
                raise UserError(f"{error}{hint if all_bad and split == 'test' else ''}") from None
            pairs[split] = [pair for pair in part if pair[1].fault is None]
        return pairs, skipped

    def _cut_missing_splits(self, pairs: dict[str, list[Pair]]) -> dict[str, list[Pair]]:
        missing = {
            split: fraction
            for split, fraction in (("validation", self.validation_share), ("test", self.test_share))
            if split not in pairs and fraction
        }
        if not missing or "train" not in pairs:
            sampled = any((self.train_examples, self.validation_examples, self.test_examples))
            for option, unused in (("group", self.group), ("stratify", None if sampled else self.stratify)):
                if unused is not None:
                    raise UserError(f"data.{option}: this source has all its splits and none is cut; leave it out")
            return pairs
        train = pairs["train"]
        positions = split_rows(
            [row for row, _ in train], missing, seed=self.split_seed, group=self.group, stratify=self.stratify
        )
        return pairs | {split: [train[i] for i in members] for split, members in positions.items()}

    def _require_rows(
        self, pairs: dict[str, list[Pair]], rows: Mapping[str, Sequence[Row]], source: str, scored: Sequence[str]
    ) -> None:
        """Raise UserError if a split is empty that must not be. A split that may be absent becomes an empty list."""
        for split in SPLITS:
            if split not in scored and (split not in rows or rows[split]):
                pairs.setdefault(split, [])
            elif not pairs.get(split):
                fraction = {"validation": self.validation_share, "test": self.test_share}.get(split)
                reason = f"; data.{split}_share: 0 cuts none from train" if fraction == 0 and split not in rows else ""
                raise UserError(f"data: the {split} split of {source} is empty{reason}")

    def _sample(self, pairs: list[Pair], count: int | None) -> list[Row]:
        rows = [row for _, row in pairs]
        if count is None or count >= len(rows):
            return rows
        strata = None if self.stratify is None else classes([row for row, _ in pairs], self.stratify)
        return [rows[i] for i in sample(rows, count, seed=self.split_seed, strata=strata)]


def _readable(row: Row) -> Row:
    """The row without unreadable values, which shape no split."""
    if not any(isinstance(value, Unreadable) for value in row.fields.values()):
        return row
    return dataclasses.replace(
        row, fields={name: value for name, value in row.fields.items() if not isinstance(value, Unreadable)}
    )


def fingerprint(rows: Mapping[str, Sequence[Row]]) -> str:
    """sha256 of the rows' content, split by split."""
    digest = hashlib.sha256()
    for split in sorted(rows, key=[*SPLITS, *sorted(rows)].index):
        digest.update(f"{split} {len(rows[split])}\n".encode())
        for row in rows[split]:
            digest.update(canonical(row.fields).encode() + b"\n")
    return digest.hexdigest()


def _without_leaks(pairs: Mapping[str, list[Pair]], visible: Sequence[str], source: str) -> tuple[list[Pair], int]:
    """The rows of train whose input is not in validation or test, and the number of the others."""
    tested = leaks.input_hashes((row for split in SPLITS[1:] for _, row in pairs[split]), visible)
    train = [pair for pair in pairs["train"] if leaks.input_hash(pair[1], visible) not in tested]
    if not train:
        raise UserError(f"data.drop_leaks: all of train of {source} is in validation or test too")
    return train, len(pairs["train"]) - len(train)
