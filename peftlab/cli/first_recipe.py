"""A first recipe for one's own file: which task its rows fit, which column is which field, and the rest as comments."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab.data.bad_rows import MOST_SKIPPED
from peftlab.data.examples import Row
from peftlab.data.files import read_file
from peftlab.errors import UserError, nearest
from peftlab.methods import METHODS
from peftlab.recipe import NAME, load_recipe
from peftlab.tasks import TASKS

FIRST = 1000  # rows that are looked at
NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
MOST_CLASSES = 10  # that are whole numbers with a point: of more they are numbers
FEW = 200  # rows: of fewer, a tenth is no split to score on
# What data sets call a field: by the field's name, whatever the task.
USUAL = {
    "tokens": ("words", "sentence", "text"),
    "labels": ("ner_tags", "tags", "ner", "pos_tags", "chunk_tags", "ner_labels"),
    "text": ("sentence", "review", "content", "body", "tweet", "comment", "premise", "sentence1", "question1"),
    "text_pair": ("hypothesis", "sentence2", "question2"),
    "label": ("labels", "class", "category", "sentiment", "rating", "score", "stars", "mood", "topic", "intent"),
    "source": ("document", "article", "input", "text", "en", "long"),
    "target": ("summary", "headline", "title", "output", "translation", "short"),
    "context": ("passage", "paragraph", "document"),
    "question": ("query",),
    "answers": ("answer",),
    "messages": ("conversations", "conversation", "dialogue"),
    "instruction": ("prompt", "question"),
    "output": ("response", "completion", "answer"),
    "choices": ("options", "endings", "candidates"),
}
BESIDE_CHOICES = {  # where there are none, these may be anything
    "prompt": ("question", "query", "context", "text"),
    "answer": ("answerkey", "answer_index", "correct", "label", "gold"),
}


@dataclass(frozen=True)
class Fit:
    """A task that rows can be of."""

    kind: str
    settings: dict[str, Any]
    columns: dict[str, str]  # field -> column
    named: int  # fields that were found by name, not by what is in them
    doubtful: bool = False  # more rows are bad than a run may skip: another form of the task may fit them better


def look(path: Path) -> list[Row]:
    """The first whole rows of a file."""
    rows = read_file(path)
    whole = [row for row in rows if row.fault is None][:FIRST]
    if not whole:
        raise UserError(f"{rows[0].where}: {rows[0].fault}" if rows else f"{path}: has no rows")
    return _with_numbers(whole)


def _usual(field: str, beside: Iterable[str]) -> tuple[str, ...]:
    """Other names of a field's column, in small letters."""
    return USUAL.get(field, BESIDE_CHOICES.get(field, ()) if "choices" in beside else ())


def fits(rows: Sequence[Row], given: Mapping[str, str], kind: str | None = None) -> list[Fit]:
    """The tasks that rows like these can be of, likeliest first; `given` maps fields to columns."""
    found = []
    for name in [kind] if kind is not None else TASKS:
        for settings, fields in TASKS[name].row_formats():
            columns = _columns(rows, fields, given, TASKS[name].fields)
            if columns is None:
                continue
            bad = _bad(TASKS[name].model_validate(settings), rows, columns)
            if bad <= len(rows) / 2:  # a few may be bad
                known = sum(columns[field].lower() in (field, *_usual(field, columns)) for field in columns)
                found.append(Fit(name, settings, columns, known, bad > MOST_SKIPPED * len(rows)))
    return sorted(found, key=lambda fit: (*_rank(fit), fit.doubtful))


def choose(rows: Sequence[Row], given: Mapping[str, str], kind: str | None) -> Fit:
    """The one task that fits best. Raises UserError if there is none, or more than one."""
    has = f"has {', '.join(map(str, rows[0].fields))}"
    for field in given:
        if given[field] not in rows[0].fields:
            raise UserError(
                f"--column {field}={given[field]}: {rows[0].where} {has}{nearest(given[field], rows[0].fields)}"
            )
    found = fits(rows, given, kind)
    if not found:
        wanted = "; ".join(
            f"{name}: {', '.join(TASKS[name].row_formats()[0][1])}" for name in ([kind] if kind else TASKS)
        )
        raise UserError(
            f"{rows[0].where}: {has}, which fits no task ({wanted}); --column FIELD=COLUMN says which is which"
        )
    best = [fit for fit in found if fit.kind != found[0].kind and _rank(fit) == _rank(found[0])]
    if best:
        kinds = ", ".join(dict.fromkeys([found[0].kind, *(fit.kind for fit in best)]))
        raise UserError(f"{rows[0].where}: {has}, which may be {kinds}; --task says which")
    return found[0]


def write(
    fit: Fit, *, train: Path, rows: int, model: str, method: str, name: str, output: Path, force: bool
) -> list[str]:
    """Write the recipe once it is known to be valid, and say what there is to know of it. Raises UserError."""
    if not re.fullmatch(NAME, name):
        raise UserError(f"--name {name}: does not match {NAME}")
    if output.is_dir():
        raise UserError(f"--output {output}: is a folder; name a file in it")
    if output.exists() and not force:
        raise UserError(f"{output}: is there already; --force overwrites it")
    staged = output.with_name(f".{output.name}.part.yaml")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        staged.write_text(_text(fit, train, rows, model, method, name, output), encoding="utf-8")
    except OSError as error:
        with contextlib.suppress(OSError):
            staged.unlink()
        raise UserError(f"--output {output}: cannot be written: {error.strerror}") from None
    try:
        try:
            recipe = load_recipe(staged)
        except UserError as error:
            raise UserError(re.sub(rf"(?m)^{re.escape(str(staged))}:\d+: ", "", str(error))) from None
        staged.replace(output)
    finally:
        staged.unlink(missing_ok=True)
    try:
        splits = recipe.rows()
        task = recipe.task.from_training(splits.rows["train"])
        bound = task.bind(row for split in splits.rows.values() for row in split)
        remark = bound.check_training_rows(splits.rows["train"])
    except UserError as error:
        return [f"{output}: written, but it will not run yet:", *str(error).splitlines()]
    sizes = ", ".join(f"{len(part)} {split}" for split, part in splits.rows.items())
    leaks = sum(splits.leaks.values())
    seen = read_file(train)
    unused = [str(column) for column in seen[0].fields if column not in fit.columns.values()]
    whole = [c for c in fit.columns.values() if _whole([row.fields.get(c) for row in seen if row.fault is None])]
    return [
        f"{output}: {recipe.task.kind}, {recipe.method.kind}; rows: {sizes}",
        *([remark] if remark else []),
        *(f"{c}: so few whole numbers are taken as classes; task.problem: regression learns numbers" for c in whole),
        *([f"columns that are not used: {', '.join(unused)}"] if unused else []),
        *([f"{leaks} of validation and test are in train too; data.drop_leaks: true takes them out"] if leaks else []),
        f"now: peftlab doctor {shlex.quote(str(output))}, then peftlab run {shlex.quote(str(output))}",
    ]


def _with_numbers(rows: Sequence[Row]) -> list[Row]:
    """Numbers as what they are looked at as: classes if whole and few, and no words or labels if they are fractions.

    CSV holds numbers as text.

    >>> rows = [Row("1", {"score": "0.5", "stars": "4", "x": 1.0}), Row("2", {"score": "1", "stars": "5", "x": 0.0})]
    >>> [row.fields for row in _with_numbers(rows)]
    [{'score': 0.5, 'stars': '4', 'x': 1}, {'score': 1.0, 'stars': '5', 'x': 0}]
    """
    changed: dict[str, Callable[[Any], Any]] = {}
    for column in rows[0].fields:
        values = [row.fields.get(column) for row in rows]
        if _pointed(values) and not _whole(values):
            changed[column] = float
        elif _whole(values) and not isinstance(values[0], str):
            changed[column] = int
    return [
        Row(row.where, {**row.fields, **{column: turn(row.fields[column]) for column, turn in changed.items()}})
        for row in rows
    ]


def _pointed(values: Sequence[Any]) -> bool:
    """Whether they are numbers, in a table as text, and some of them are written with a point."""
    numbers = all(isinstance(v, float) or (isinstance(v, str) and NUMBER.fullmatch(v)) for v in values)
    return numbers and any("." in str(v) for v in values)


def _whole(values: Sequence[Any]) -> bool:
    """Whether they are the classes 0, 1, ... of a table that has written them as 0.0, 1.0, ..."""
    return _pointed(values) and len(set(values)) <= MOST_CLASSES and all(float(v).is_integer() for v in values)


def _rank(fit: Fit) -> tuple[bool, int]:
    """Likelier ones first."""
    return fit.named != len(fit.columns), -fit.named


def _columns(
    rows: Sequence[Row], fields: Mapping[str, Any], given: Mapping[str, str], needed: Sequence[str]
) -> dict[str, str] | None:
    """A column for each field: as given, of its name, a usual one, or for a needed field the only one of its shape."""
    found = dict(given)
    values = {column: [row.fields.get(column) for row in rows[:FEW]] for column in map(str, rows[0].fields)}
    fitting = {
        field: [column for column in values if _mostly_like(values[column], value)] for field, value in fields.items()
    }
    if any(column not in fitting.get(field, ()) for field, column in given.items()):
        return None
    for names in (lambda field: (field,), lambda field: _usual(field, fields)):
        for field in fields:
            there = {column.lower(): column for column in fitting[field] if column not in found.values()}
            named = [there[name] for name in names(field) if name in there]
            if field not in found and named:
                found[field] = named[0]
    for field in fields:
        free = [column for column in fitting[field] if column not in found.values()]
        if field not in found:
            if len(free) != 1 or (needed and field not in needed):
                return None
            found[field] = free[0]
    return found


def _mostly_like(values: Sequence[Any], pattern: Any) -> bool:
    """A few may be bad; a run will say which."""
    return 2 * sum(_like(value, pattern) for value in values) > len(values)


def _like(value: Any, pattern: Any) -> bool:
    """Whether a value is of the sort of a pattern.

    >>> _like(["a"], ["b", "c"]), _like("a", ["b"]), _like(1, 0.5), _like(True, 0.5), _like({"x": 1}, {"x": 0})
    (True, False, True, False, True)
    """
    if isinstance(pattern, (list, tuple)):
        return isinstance(value, (list, tuple)) and (not value or not pattern or _like(value[0], pattern[0]))
    if isinstance(pattern, dict):
        return isinstance(value, dict) and pattern.keys() <= value.keys()
    if isinstance(pattern, (int, float)):
        if isinstance(pattern, int):  # as the number of a class true and false serve, too
            return isinstance(value, int)
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, type(pattern))


def _bad(task: Any, rows: Sequence[Row], columns: Mapping[str, str]) -> int:
    """How many of the rows the task does not take."""
    bad = 0
    for row in rows:
        try:
            task.check_row(Row(row.where, {field: row.fields.get(column) for field, column in columns.items()}))
        except UserError:
            bad += 1
    return bad


def _text(fit: Fit, train: Path, rows: int, model: str, method: str, name: str, output: Path) -> str:
    renamed = {field: column for field, column in fit.columns.items() if field != column}
    count = str(rows) if rows < FIRST else f"{FIRST} or more"
    task = fit.kind
    if fit.settings:
        task = _flow({"kind": fit.kind, **fit.settings})
    lines = [
        f"# Made by `peftlab init` of {_word(str(train))}: {count} rows with {', '.join(fit.columns.values())}.",
        f"# peftlab doctor {output.name} tries it in seconds, peftlab run {output.name} trains it; peftlab list shows",
        "# the other methods, quantisations and tasks, peftlab schema all their settings.",
        f"name: {name}",
        f"description: {_word(f'{METHODS[method].title}, {fit.kind} on {train.name}')}",
        f"model: {_word(model)}  # a hub id, or a folder",
        f"task: {task}",
        "data:",
        f"  train: {_word(str(train))}",
    ]
    if renamed:
        lines.append(f"  columns: {_flow(renamed)}  # the task's field: the file's column")
    if rows < FEW:
        lines += [
            "  validation_share: 0.2  # the file is small: a tenth would be too few to score on",
            "  test_share: 0.2",
        ]
    lines += [
        "  # validation: and test: name files of their own; without, a share of train is cut off by a seeded hash",
        "  # group: COLUMN keeps rows that belong together in one split; stratify: COLUMN gives each class its share",
        "  # on_bad_row: skip leaves bad rows out and counts them; drop_leaks: true takes test questions out of train",
        f"method: {method}",
        "# quantization: nf4  # less memory for the frozen base",
        "# training:",
        f"#   learning_rate: {METHODS[method].learning_rate}  # the method's own",
        "#   epochs: 3",
    ]
    return "\n".join(lines) + "\n"


def _flow(values: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{_word(key)}: {_word(value)}" for key, value in values.items()) + "}"


def _word(value: Any) -> str:
    """As YAML: plain if it can be nothing else.

    >>> _word("mine.jsonl"), _word("no"), _word("a: b"), _word(True)
    ('mine.jsonl', '"no"', '"a: b"', 'true')
    """
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z./][\w./-]*", value)
    if plain and value.lower() not in ("yes", "no", "on", "off", "true", "false", "null", "y", "n"):
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def default_name(train: Path, method: str) -> str:
    """
    >>> default_name(Path("data/My Addresses.jsonl"), "lora")
    'lora-my-addresses'
    """
    return re.sub(r"[^a-z0-9._-]+", "-", f"{method}-{train.stem}".lower()).replace("_", "-").strip("-.")[:64]
