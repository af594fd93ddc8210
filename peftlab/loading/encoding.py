"""Encoding of rows as examples. Rows that the task cannot encode are bad rows; encoded examples are cached."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tokenizers
import transformers

import peftlab.tasks
from peftlab.data.bad_rows import OnBadRow, apply_bad_row_policy
from peftlab.data.examples import Encoded, Row
from peftlab.data.splitting import canonical
from peftlab.errors import UserError
from peftlab.loading import encoded_cache
from peftlab.models.model import ModelFiles
from peftlab.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 50  # rows that are encoded together while looking for bad ones


def encode(
    task: Task,
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    *,
    files: ModelFiles,
    what: str,
    on_bad_row: OnBadRow,
    tokens: Sequence[str] = (),
) -> tuple[Encoded, dict[str, int]]:
    """Examples, and numbers of rows left out, by reason. Raises UserError with each row that cannot be encoded.

    `limit` is in tokens; `what` names the split in messages; `tokens` were added to the base's tokenizer.
    """
    key = _key(task, rows, files, limit, tokens)
    cached = encoded_cache.load(key, rows)
    if cached is not None:
        return cached, {}
    try:
        encoded = task.encode(rows, tokenizer, limit)
    except UserError:
        good, bad = _separate_bad_rows(rows, lambda part: task.encode(part, tokenizer, limit))
        skipped = apply_bad_row_policy(bad, len(rows), what, on_bad_row)
        return task.encode(good, tokenizer, limit), skipped
    encoded_cache.store(key, rows, encoded)
    return encoded, {}


def _separate_bad_rows(rows: Sequence[Row], encode: Callable[[Sequence[Row]], object]) -> tuple[list[Row], list[Row]]:
    """Rows that can be encoded, and those that cannot, each with its fault."""
    good: list[Row] = []
    bad: list[Row] = []
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        try:
            encode(part)
            good += part
            continue
        except UserError:
            pass
        for row in part:
            try:
                encode([row])
                good.append(row)
            except UserError as error:
                if not str(error).startswith(f"{row.where}: "):
                    raise  # the fault is not this row's
                bad.append(Row(row.where, row.fields, str(error).removeprefix(f"{row.where}: ")))
    return good, bad


def _key(task: Task, rows: Sequence[Row], files: ModelFiles, limit: int, tokens: Sequence[str]) -> str:
    """Cache key: digest of the rows, the base's files, the task and its code, and the libraries."""
    digest = hashlib.sha256(f"{limit} {tokenizers.__version__} {transformers.__version__}".encode())
    digest.update(task.model_dump_json().encode())
    digest.update(files.fingerprint.encode() + canonical({"tokens": list(tokens)}).encode())
    for path in sorted(Path(peftlab.tasks.__file__).parent.rglob("*.py")):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    for row in rows:
        digest.update(canonical(row.fields).encode() + b"\n")
    return digest.hexdigest()[:32]
