"""Guess of the task and its columns from the rows of a data file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from peftlab.cli.file_guess import SampleFile, with_labels, with_paths
from peftlab.data.bad_rows import MOST_SKIPPED
from peftlab.data.columns import nested
from peftlab.data.examples import Row
from peftlab.errors import UserError, nearest
from peftlab.tasks import TASKS, Task

SAMPLED_ROWS = 1000  # of the file, from its start
TYPED_ROWS = 200  # of these, from which the type of a column is read
MULTI_LABEL = "sequence_classification"  # the task of rows with a column of 0 and 1 for each label
IDENTIFIERS = ("id", "idx", "index", "guid", "uid", "uuid", "unnamed: 0")  # names of columns that are no field
MAX_CLASSES = 10  # distinct integral floats up to which they are class numbers
NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")

COLUMN_NAMES = {
    "tokens": ("words", "sentence", "text"),
    "labels": ("ner_tags", "tags", "ner", "pos_tags", "chunk_tags", "ner_labels"),
    "text": (
        "sentence",
        "review",
        "content",
        "body",
        "tweet",
        "comment",
        "comment_text",
        "premise",
        "sentence1",
        "question1",
    ),
    "text_pair": ("hypothesis", "sentence2", "question2"),
    "label": ("labels", "class", "category", "sentiment", "rating", "score", "stars", "mood", "topic", "intent"),
    "source": ("document", "article", "input", "text", "en", "long"),
    "target": ("summary", "headline", "title", "output", "translation", "short"),
    "context": ("passage", "paragraph", "document"),
    "question": ("query",),
    "answers": ("answer",),
    "answers.text": ("answer_text", "answer"),
    "answers.answer_start": ("answer_start", "start"),
    "messages": ("conversations", "conversation", "dialogue"),
    "instruction": ("prompt", "question"),
    "output": ("response", "completion", "answer"),
    "choices": ("options", "endings", "candidates"),
}
"""Common column names of data sets by the task's field, most common first."""

CHOICE_COLUMN_NAMES = {
    "prompt": ("question", "query", "context", "text"),
    "answer": ("answerkey", "answer_index", "correct", "label", "gold"),
}
"""Common names of two more fields, in rows that have `choices`; elsewhere they may mean anything."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A task that the rows may belong to."""

    kind: str
    settings: dict[str, Any]
    columns: dict[str, str]
    """Field of the task -> column of the file."""
    named: int
    """Number of fields that were matched by name rather than by type."""
    fault: str | None = None
    """The first bad row's place and fault."""
    labels_from: tuple[str, ...] = ()
    """Columns of 0 and 1, one per label, in place of the column `label`."""
    doubtful: bool = False
    """True if more rows are bad than a run may skip: another format of the task may match better."""
    refused: bool = False
    """True if more than half of the rows are bad."""


def valid_rows(sample: SampleFile) -> list[Row]:
    """The first valid rows of a file, numbers converted. Raises UserError if there are none."""
    rows = sample.rows
    valid = [row for row in rows if row.fault is None][:SAMPLED_ROWS]
    if not valid:
        raise UserError(f"{rows[0].where}: {rows[0].fault}" if rows else f"{sample.paths[0]}: has no rows")
    return convert_numbers(valid)


def candidates(rows: Sequence[Row], assigned: Mapping[str, str], kind: str | None = None) -> list[Candidate]:
    """The tasks that the rows may belong to, most likely first. `assigned` maps fields to columns."""
    return [match for match in _matches(rows, assigned, kind) if not match.refused]


def _matches(rows: Sequence[Row], assigned: Mapping[str, str], kind: str | None) -> list[Candidate]:
    matches = []
    for name in [kind] if kind is not None else TASKS:
        for settings, fields in TASKS[name].row_formats():
            columns = _match_columns(rows, fields, assigned, TASKS[name].fields)
            if columns is None:
                continue
            faults = _faults(TASKS[name].model_validate(settings), rows, columns)
            matches.append(
                Candidate(
                    kind=name,
                    settings=settings,
                    columns=columns,
                    named=sum(_has_name(columns[field], (field, *_common_names(field, columns))) for field in columns),
                    fault=faults[0] if faults else None,
                    refused=len(faults) > len(rows) / 2,  # a run reports fewer
                    doubtful=len(faults) > MOST_SKIPPED * len(rows),
                )
            )
    return sorted(matches, key=lambda match: (*_rank(match), match.doubtful))


def guess(rows: Sequence[Row], assigned: Mapping[str, str], kind: str | None) -> Candidate:
    """The task that the rows match best. Raises UserError if there is none, or several."""
    where, columns = rows[0].where, f"has {', '.join(map(str, rows[0].fields))}"
    paths = with_paths(rows)
    for field, column in assigned.items():
        if column not in paths[0].fields:
            raise UserError(f"--column {field}={column}: {where} {columns}{nearest(column, paths[0].fields)}")
    labeled, labels_from = with_labels(rows)
    if labels_from and kind in (None, MULTI_LABEL) and "label" not in assigned:
        several = [
            match for match in candidates(labeled, assigned, MULTI_LABEL) if match.columns.get("label") == "label"
        ]
        if several:
            settings = {**several[0].settings, "labels": list(labels_from)}
            return replace(several[0], settings=settings, labels_from=labels_from)
    matches = candidates(rows, assigned, kind) or candidates(paths, assigned, kind)
    if not matches:
        bad = [match for match in _matches(rows, assigned, kind) if kind or match.named == len(match.columns)]
        if bad:
            raise UserError(f"{bad[0].fault}; {len(rows)} rows were read as {bad[0].kind}")
        fields = "; ".join(
            f"{name}: {', '.join(TASKS[name].row_formats()[0][1])}" for name in ([kind] if kind else TASKS)
        )
        raise UserError(f"{where}: {columns}, which fits no task ({fields}); --column FIELD=COLUMN says which is which")
    best = matches[0]
    ties = [match.kind for match in matches if match.kind != best.kind and _rank(match) == _rank(best)]
    if ties:
        kinds = ", ".join(dict.fromkeys([best.kind, *ties]))
        raise UserError(f"{where}: {columns}, which may be {kinds}; --task says which")
    return best


def convert_numbers(rows: Sequence[Row]) -> list[Row]:
    """Convert fractions written as text to float, and integral floats of few distinct values to int (classes).

    >>> rows = [Row("1", {"score": "0.5", "stars": "4", "x": 1.0}), Row("2", {"score": "1", "stars": "5", "x": 0.0})]
    >>> [row.fields for row in convert_numbers(rows)]
    [{'score': 0.5, 'stars': '4', 'x': 1}, {'score': 1.0, 'stars': '5', 'x': 0}]
    """
    types: dict[str, Callable[[Any], Any]] = {}
    for column in rows[0].fields:
        values = [row.fields.get(column) for row in rows]
        if _are_floats(values) and not are_integral_floats(values):
            types[column] = float
        elif are_integral_floats(values) and not isinstance(values[0], str):
            types[column] = int
    return [
        Row(row.where, {**row.fields, **{column: convert(row.fields[column]) for column, convert in types.items()}})
        for row in rows
    ]


def are_integral_floats(values: Sequence[Any]) -> bool:
    """True for the class numbers 0, 1, ... of a table that writes them as 0.0, 1.0, ..."""
    return _are_floats(values) and len(set(values)) <= MAX_CLASSES and all(float(v).is_integer() for v in values)


def _are_floats(values: Sequence[Any]) -> bool:
    """True if all are numbers, perhaps as text, and one is written with a decimal point."""
    numbers = all(isinstance(v, float) or (isinstance(v, str) and NUMBER.fullmatch(v)) for v in values)
    return numbers and any("." in str(v) for v in values)


def _common_names(field: str, fields: Iterable[str]) -> tuple[str, ...]:
    """Common column names of a field, in lower case."""
    return COLUMN_NAMES.get(field, CHOICE_COLUMN_NAMES.get(field, ()) if "choices" in fields else ())


def _rank(candidate: Candidate) -> tuple[bool, int]:
    """Sort key: first those with all fields matched by name, then those with more fields."""
    return candidate.named != len(candidate.columns), -candidate.named


def _match_columns(
    rows: Sequence[Row], fields: Mapping[str, Any], assigned: Mapping[str, str], required: Sequence[str]
) -> dict[str, str] | None:
    """A column for each field: the assigned one, one of its name, of a common name, or the only one of its type.

    Only a required field is matched by type. None if a field has no column. `fields` holds an example value of each.
    """
    columns = dict(assigned)
    values = {column: [row.fields.get(column) for row in rows[:TYPED_ROWS]] for column in map(str, rows[0].fields)}
    typed = {
        field: [column for column in values if _mostly_like(values[column], example)]
        for field, example in fields.items()
    }
    if any(column not in typed.get(field, ()) for field, column in assigned.items()):
        return None
    for names_of in (lambda field: (field,), lambda field: _common_names(field, fields)):
        for field in fields:
            free = {
                name: column
                for column in reversed(typed[field])
                if column not in columns.values()
                for name in (column.rpartition(".")[2].lower(), column.lower())
            }
            named = [free[name] for name in names_of(field) if name in free]
            if field not in columns and named:
                columns[field] = named[0]
    for field in fields:
        remaining = [
            column for column in typed[field] if column not in columns.values() and column.lower() not in IDENTIFIERS
        ]
        if field not in columns:
            if len(remaining) != 1 or (required and field not in required):
                return None
            columns[field] = remaining[0]
    return columns


def _mostly_like(values: Sequence[Any], example: Any) -> bool:
    """True if most values have the type of the example; a run reports the others."""
    return 2 * sum(_is_like(value, example) for value in values) > len(values)


def _is_like(value: Any, example: Any) -> bool:
    """True if a value has the type of an example.

    >>> _is_like(["a"], ["b", "c"]), _is_like("a", ["b"]), _is_like(1, 0.5), _is_like(True, 0.5)
    (True, False, True, False)
    """
    if isinstance(example, (list, tuple)):
        return isinstance(value, (list, tuple)) and (not value or not example or _is_like(value[0], example[0]))
    if isinstance(example, dict):
        return isinstance(value, dict) and example.keys() <= value.keys()
    if isinstance(example, int):  # a class number; true and false are classes, too
        return isinstance(value, int)
    if isinstance(example, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, type(example))


def _has_name(column: str, names: Sequence[str]) -> bool:
    return column.lower() in names or column.rpartition(".")[2].lower() in names


def _faults(task: Task, rows: Sequence[Row], columns: Mapping[str, str]) -> list[str]:
    """The reasons why the task refuses rows, one of each."""
    faults = []
    for row in rows:
        try:
            values = nested({field: row.fields.get(column) for field, column in columns.items()})
            task.check_row(task.normalize_row(Row(row.where, values)))
        except UserError as error:
            faults.append(str(error))
    return faults
