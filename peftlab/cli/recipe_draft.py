"""A first recipe as commented YAML, written once it is known to be valid."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab.cli.file_guess import SampleFile
from peftlab.cli.task_guess import SAMPLED_ROWS, Candidate, are_integral_floats
from peftlab.errors import UserError
from peftlab.methods import METHODS
from peftlab.recipe import NAME, Recipe, load_recipe

REMARKS = {
    "encoding": "  # the file is not UTF-8",
    "names": "  # the file has no header line",
    "format": "  # cells are in quotation marks",
    "labels_from": "  # one column of 0 and 1 per label",
    "conll_columns": "  # positions in a line, from 1",
}
"""Comment on a setting of `data`."""
SMALL = 200  # rows, below which a tenth is too small a split


@dataclass(frozen=True, kw_only=True)
class Draft:
    """Content of a first recipe."""

    task: Candidate
    sample: SampleFile
    rows: int
    """Number of rows that were read, at most SAMPLED_ROWS."""
    model: str
    method: str
    name: str


def write(draft: Draft, output: Path, *, force: bool) -> list[str]:
    """Write the recipe if it is valid; return lines about it. Raises UserError."""
    if not re.fullmatch(NAME, draft.name):
        raise UserError(f"--name {draft.name}: does not match {NAME}")
    if output.is_dir():
        raise UserError(f"--output {output}: is a folder; name a file in it")
    if output.exists() and not force:
        raise UserError(f"{output}: already exists; --force overwrites it")
    staged = output.with_name(f".{output.name}.part.yaml")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        staged.write_text(_text(draft, output), encoding="utf-8")
    except OSError as error:
        with contextlib.suppress(OSError):
            staged.unlink()
        raise UserError(f"--output {output}: cannot be written: {error.strerror}") from None
    try:
        try:
            recipe = load_recipe(staged)
        except UserError as error:  # without the place in a file that the user has not seen
            raise UserError(re.sub(rf"(?m)^{re.escape(str(staged))}:\d+: ", "", str(error))) from None
        staged.replace(output)
    finally:
        staged.unlink(missing_ok=True)
    return list(_remarks(draft, recipe, output))


def _remarks(draft: Draft, recipe: Recipe, output: Path) -> Iterator[str]:
    """Sizes of the splits, what the data leave unused, and the commands to use next."""
    try:
        splits = recipe.rows()
        task = recipe.task.from_training(splits.rows["train"])
        bound = task.bind(row for split in splits.rows.values() for row in split)
        remark = bound.check_training_rows(splits.rows["train"])
    except UserError as error:
        yield f"{output}: written, but it cannot run yet:"
        yield from str(error).splitlines()
        return
    sizes = ", ".join(f"{len(rows)} {split}" for split, rows in splits.rows.items())
    yield f"{output}: {recipe.task.kind}, {recipe.method.kind}; rows: {sizes}"
    if remark:
        yield remark
    rows, columns = draft.sample.rows, draft.task.columns.values()
    for column in columns:
        if are_integral_floats([row.fields.get(column) for row in rows if row.fault is None]):
            yield f"{column}: few distinct whole numbers, read as classes; for numbers set task.problem: regression"
    used = {*columns, *(column.partition(".")[0] for column in columns), *draft.task.labels_from}
    unused = [str(column) for column in rows[0].fields if column not in used]
    if unused:
        yield f"unused columns: {', '.join(unused)}"
    leaks = sum(splits.leaks.values())
    if leaks:
        yield f"{leaks} of validation and test also occur in train; data.drop_leaks: true removes them from train"
    yield f"next: peftlab doctor {shlex.quote(str(output))}, then peftlab run {shlex.quote(str(output))}"


def _text(draft: Draft, output: Path) -> str:
    task, method = draft.task, METHODS[draft.method]
    train, *others = draft.sample.paths
    relative = [_relative(path, output.parent) for path in draft.sample.paths]
    files: Any = relative if others else relative[0]
    if draft.sample.parallel:
        files = dict(zip(("source", "target"), relative, strict=True))
    settings = {**draft.sample.settings, **({"labels_from": list(task.labels_from)} if task.labels_from else {})}
    renamed = {field: column for field, column in task.columns.items() if field != column}
    count = str(draft.rows) if draft.rows < SAMPLED_ROWS else f"{SAMPLED_ROWS} or more"
    lines = [
        f"# Written by `peftlab init` for {_yaml(str(train))}: {count} rows with {', '.join(task.columns.values())}.",
        f"# peftlab doctor {output.name} checks it in seconds, peftlab run {output.name} trains it.",
        "# peftlab list names the other methods, quantizations and tasks, peftlab explain KEY any key.",
        f"name: {draft.name}",
        f"description: {_yaml(f'{method.title}, {task.kind} on {train.name}')}",
        f"model: {_yaml(draft.model)}  # a Hub id or a folder",
        f"task: {_yaml({'kind': task.kind, **task.settings}) if task.settings else task.kind}",
        "data:",
        f"  train: {_yaml(files)}",
        *(f"  {key}: {_yaml(value)}{REMARKS.get(key, '')}" for key, value in settings.items()),
    ]
    if renamed:
        lines.append(f"  columns: {_yaml(renamed)}  # the task's field: the file's column")
    if draft.rows < SMALL:
        lines += ["  validation_share: 0.2  # the file is small: a tenth would be too few rows", "  test_share: 0.2"]
    lines += [
        "  # validation: and test: name other files; without them a fraction of train is split off by a seeded hash",
        "  # group: COLUMN keeps rows that belong together in one split; stratify: COLUMN balances classes over splits",
        "  # on_bad_row: skip leaves bad rows out and counts them; drop_leaks: true removes test inputs from train",
        f"method: {draft.method}",
        "# quantization: nf4  # less memory for the frozen base model",
        "# training:",
        f"#   learning_rate: {method.learning_rate}  # the method's default",
        "#   epochs: 3",
    ]
    return "\n".join(lines) + "\n"


def _relative(path: Path, folder: Path) -> str:
    """The path as seen from the recipe's folder; an absolute path stays as it is."""
    return str(path) if path.is_absolute() or str(path).startswith("~") else os.path.relpath(path, folder)


def _yaml(value: Any) -> str:
    """A value as YAML; a string is quoted where it could be read as something else.

    >>> _yaml("mine.jsonl"), _yaml("no"), _yaml("a: b"), _yaml({"a": True})
    ('mine.jsonl', '"no"', '"a: b"', '{a: true}')
    """
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_yaml(key)}: {_yaml(item)}" for key, item in value.items()) + "}"
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
