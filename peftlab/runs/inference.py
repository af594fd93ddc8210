"""Using a tuned model: predictions for new rows, and merging the method into its base."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator

from peftlab.data.columns import ABSENT, nested, value_at
from peftlab.data.examples import Example, Row
from peftlab.errors import UserError
from peftlab.io import atomic
from peftlab.loading.model import publish_dropout, publish_processors
from peftlab.quantization.none import NoQuantization
from peftlab.results.result_file import read_result
from peftlab.runs import artifact, scoring
from peftlab.runs.artifact import Tuned
from peftlab.tasks import Task
from peftlab.training.gradients import to_device
from peftlab.training.prediction import predict

BATCH_TOKENS = 4096  # padding included, at most; fewer if the training had smaller batches
COPIES = 8  # of the task's sample rows, each with other tokens, to compare logits


@dataclass
class Request:
    """Outputs requested of a prediction besides the answers."""

    scored: bool = False
    """Compute the metrics: the rows have targets."""
    top: int | None = None
    """Number of labels whose probabilities each answer has as `scores`, the most probable first."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Set after the last answer if `scored`."""


def rows_from_lines(task: Task, lines: Sequence[str], where: str) -> list[Row]:
    """One row per line that is not empty. Raises UserError."""
    return [task.row_from_text(line, f"{where}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]


def rows_from_file(task: Task, rows: Sequence[Row], columns: Mapping[str, str]) -> list[Row]:
    """Rows of a data file with the columns of the run's data (`columns`: field -> column) or named as the fields."""
    inputs = []
    for row in rows:
        named = {field: value_at(row.fields, column) for field, column in columns.items()}
        others = {name: value for name, value in row.fields.items() if name not in columns.values()}
        found = {field: value for field, value in named.items() if value is not ABSENT}
        inputs.append(task.inputs(Row(row.where, {**others, **nested(found)})))
    return inputs


def labeled_rows(task: Task, rows: Sequence[Row], columns: Mapping[str, str]) -> list[Row]:
    """Rows of a data file with their targets, checked as in training. Raises UserError."""
    by_column = {column: name for name, column in columns.items()}
    labeled = []
    for row in rows:
        renamed = Row(row.where, {by_column.get(name, name): value for name, value in row.fields.items()})
        missing = [name for name in task.fields if renamed.fields.get(name) is None]
        if missing:
            names = ", ".join(map(str, row.fields))
            raise UserError(f"{row.where}: no {missing[0]!r}, which --score needs; it has: {names}")
        labeled.append(task.normalize_row(renamed))
        task.check_row(labeled[-1])
    return labeled


def answers(
    folder: Path,
    rows_for: Callable[[Task], list[Row]],
    trust: str | None = None,
    request: Request | None = None,
) -> Iterator[dict[str, Any]]:
    """Predict each row with the run's model. `trust`: see `Model.files`. Raises UserError."""
    request = Request() if request is None else request
    accelerator = Accelerator()
    unbound = artifact.read_card(folder).task
    if request.top is not None and not unbound.has_class_scores:
        raise UserError(f"--top-k, --all-scores: {unbound.kind} has no probabilities of labels for an input")
    rows = rows_for(artifact.read_card(folder).task)
    tuned = artifact.load(folder, device=accelerator.device, trust=trust)
    task = tuned.card.task.model_copy(update={"truncate": True})  # the answer reports it
    encoded = task.encode(rows, tuned.tokenizer, tuned.card.limit)
    records = predict(
        tuned.model,
        task=task,
        examples=encoded.examples,
        tokenizer=tuned.tokenizer,
        batch_tokens=min(BATCH_TOKENS, trained_batch_tokens(folder)),
        accelerator=accelerator,
        autocast=tuned.autocast,
        class_scores=request.top is not None,
    )
    if request.scored:
        request.metrics.update(scoring.score(task, records))
    for row, record in zip(rows, records, strict=True):
        # "rows.csv:12" for a file of lines, "rows.parquet row 12" for others
        scores = record.pop("scores", None)
        answer = {"line": int(re.split("[: ]", row.where)[-1]), **task.answer(record)}
        if scores is not None:
            best = sorted(scores.items(), key=lambda item: -item[1])[: request.top]
            answer["scores"] = dict(best)
        yield answer


def trained_batch_tokens(folder: Path) -> int:
    """Most tokens in a micro-batch of the run's training, so that predictions need no more memory than it did.

    `BATCH_TOKENS` if the run has no readable result, or if its batches were counted in examples.
    """
    try:
        training = read_result(folder).recipe["training"]
    except UserError:
        return BATCH_TOKENS
    if training.get("batch_examples") is not None:
        return BATCH_TOKENS
    return max(1, (training.get("batch_tokens") or 1024) // (training.get("accumulation") or 1))


def merge(folder: Path, output: Path, trust: str | None = None) -> float:
    """Write base and method as one model at the base's published precision.

    Returns the largest difference of a logit to the model as trained, on tokens of the tokenizer's full vocabulary. The
    method is merged into the base as published: merging into a quantized base would round the sum again, which changes
    logits by tenths. `trust`: see `Model.files`. Raises UserError.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"--output {output}: exists already; name a new or an empty folder")
    card = artifact.read_card(folder)
    if not card.method.merges:
        raise UserError(f"{folder}: {card.method.kind} computes next to the base and cannot be merged into it")
    try:
        if not output.parent.exists():
            output.parent.mkdir(parents=True)
        staging = tempfile.TemporaryDirectory(prefix=f".{output.name[:40]}.", dir=output.parent)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written: {error.strerror}") from None
    with staging as staging_folder:
        staged = Path(staging_folder) / "model"
        try:
            difference = _merge(folder, card, staged, trust)
            staged.replace(output)
        except Exception as error:
            reason = atomic.storage_error(error)
            if reason is None:
                raise
            raise UserError(f"--output {output}: cannot be written: {reason}") from None
    return difference


def _merge(folder: Path, card: artifact.Card, staged: Path, trust: str | None) -> float:
    device = Accelerator().device
    trained = artifact.load(folder, device=device, trust=trust)
    full = artifact.load(folder, device=device, quantization=NoQuantization(), compute=torch.float32, trust=trust)
    merged = card.method.merge(full.model)
    files = trained.base.files
    published = transformers.AutoConfig.from_pretrained(files.folder, trust_remote_code=files.trusted).dtype
    if published is not None:
        merged.to(published)
    artifact.set_generation(merged, card.task, trained.tokenizer)
    merged.save_pretrained(staged)  # type: ignore[operator]
    publish_dropout(staged, files)
    publish_processors(staged, files)
    trained.tokenizer.save_pretrained(staged)
    # The saved model is compared: over a base in half precision, rounding to that is most of the difference.
    model_class: Any = type(merged)
    del full, merged
    saved = model_class.from_pretrained(staged, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
    saved.to(device)
    inputs = _sample(trained, device)
    with torch.no_grad():
        with trained.autocast():
            expected = _logits(trained.model(**inputs))
        return float((expected - _logits(saved(**inputs))).abs().max())


def _sample(tuned: Tuned, device: torch.device) -> dict[str, torch.Tensor]:
    """A fixed batch of the task's sample rows, with their ordinary tokens replaced by random ones.

    Special tokens stay in their places: T5 and BART classify a text by its end token, and need one in each.
    """
    card, tokenizer = tuned.card, tuned.tokenizer
    task = card.task.model_copy(update={"truncate": True})
    examples = task.encode(task.sample_rows() * COPIES, tokenizer, card.limit).examples
    special = set(tokenizer.all_special_ids)
    embeddings: Any = tuned.base.model.get_input_embeddings()
    size = min(len(tokenizer), int(embeddings.weight.shape[0]))
    ordinary = torch.tensor([token for token in range(size) if token not in special])
    generator = torch.Generator().manual_seed(0)
    sample = []
    for example in examples:
        old_ids = example.features["input_ids"]
        new_ids = ordinary[torch.randint(len(ordinary), (len(old_ids),), generator=generator)].tolist()
        ids = [old if old in special else new for old, new in zip(old_ids, new_ids, strict=True)]
        sample.append(Example({**example.features, "input_ids": ids}, example.row))
    batch = task.collate(sample, tokenizer.pad_token_id)
    return to_device(task.model_inputs(batch, tuned.model), device)


def _logits(outputs: Any) -> torch.Tensor:
    """All logits of the outputs, flat."""
    return torch.cat([value.float().flatten() for name, value in outputs.items() if name.endswith("logits")])
