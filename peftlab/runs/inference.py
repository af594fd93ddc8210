"""Using a tuned model: answers for new text, and the method folded into its base."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator

from peftlab.data.examples import Example, Row
from peftlab.errors import UserError
from peftlab.io import atomic
from peftlab.loading.model import publish_dropout
from peftlab.quantization.none import NoQuantization
from peftlab.runs import artifact
from peftlab.runs.artifact import Tuned
from peftlab.tasks import Task
from peftlab.training.gradients import to_device
from peftlab.training.prediction import predict

TOKENS = 4096  # of a batch
COPIES = 8  # of a task's sample rows, each with other tokens


def of_lines(task: Task, lines: Sequence[str], where: str) -> list[Row]:
    """A row of each line that is not blank. Raises UserError."""
    return [task.row_from_text(line, f"{where}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]


def of_file(task: Task, rows: Sequence[Row], columns: Mapping[str, str]) -> list[Row]:
    """Rows of a data file, named as the run's data were (`columns`: field -> column) or as the task's fields are."""
    by_column = {column: field for field, column in columns.items()}
    return [
        task.inputs(Row(row.where, {by_column.get(name, name): value for name, value in row.fields.items()}))
        for row in rows
    ]


def answers(folder: Path, rows_for: Callable[[Task], list[Row]], trust: str | None = None) -> Iterator[dict[str, Any]]:
    """What the run's model says of each of these rows. `trust`: as of `Model.files`."""
    accelerator = Accelerator()
    rows = rows_for(artifact.read_card(folder).task)
    tuned = artifact.load(folder, device=accelerator.device, trust=trust)
    task = tuned.card.task.model_copy(update={"truncate": True})  # the answer says so
    encoded = task.encode(rows, tuned.tokenizer, tuned.card.limit)
    records = predict(
        tuned.model,
        task=task,
        examples=encoded.examples,
        tokenizer=tuned.tokenizer,
        batch_tokens=TOKENS,
        accelerator=accelerator,
        autocast=tuned.autocast,
    )
    for row, record in zip(rows, records, strict=True):
        # "rows.csv:12" of what has lines, "rows.parquet row 12" of what has not
        yield {"line": int(re.split("[: ]", row.where)[-1]), **task.answer(record)}


def merge(folder: Path, output: Path, trust: str | None = None) -> float:
    """Write base and method as one model at the base's original precision; return how far its logits moved.

    Merging into a quantised base would round the sum anew (logits move by tenths); here the base is taken as published,
    and the difference to the model as it was trained is measured on tokens from all over the tokenizer's vocabulary.
    `trust`: as of `Model.files`.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"--output {output}: is there already; name a new or an empty folder")
    card = artifact.read_card(folder)
    if not card.method.merges:
        raise UserError(f"{folder}: {card.method.kind} computes beside the base and cannot be merged into it")
    try:
        if not output.parent.exists():
            output.parent.mkdir(parents=True)
        staging = tempfile.TemporaryDirectory(prefix=f".{output.name[:40]}.", dir=output.parent)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written: {error.strerror}") from None
    with staging as folder_beside:
        staged = Path(folder_beside) / "model"
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
    whole = artifact.load(folder, device=device, quantization=NoQuantization(), compute=torch.float32, trust=trust)
    merged = card.method.merge(whole.model)
    files = trained.base.files
    published = transformers.AutoConfig.from_pretrained(files.folder, trust_remote_code=files.trusted).dtype
    if published is not None:
        merged.to(published)
    merged.save_pretrained(staged)  # type: ignore[operator]
    publish_dropout(staged, files)
    trained.tokenizer.save_pretrained(staged)
    # What is in the files, rounded to the published dtype: that rounding is most of the difference over such a base.
    own: Any = type(merged)
    del whole, merged
    saved = own.from_pretrained(staged, dtype=torch.float32, use_safetensors=True, trust_remote_code=False).to(device)
    inputs = _sample(trained, device)
    with torch.no_grad():
        with trained.autocast():
            expected = _logits(trained.model(**inputs))
        return float((expected - _logits(saved(**inputs))).abs().max())


def _sample(tuned: Tuned, device: torch.device) -> dict[str, torch.Tensor]:
    """A batch in the form of the task's own, of arbitrary tokens, always the same.

    Special tokens stay in their places: T5 and BART classify a text by its end, and want one in each.
    """
    card, tokenizer = tuned.card, tuned.tokenizer
    task = card.task.model_copy(update={"truncate": True})
    examples = task.encode(task.sample_rows() * COPIES, tokenizer, card.limit).examples
    special = set(tokenizer.all_special_ids)
    embeddings: Any = tuned.base.model.get_input_embeddings()
    size = min(len(tokenizer), int(embeddings.num_embeddings))
    ordinary = torch.tensor([token for token in range(size) if token not in special])
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for example in examples:
        own = example.features["input_ids"]
        others = ordinary[torch.randint(len(ordinary), (len(own),), generator=generator)].tolist()
        ids = [old if old in special else new for old, new in zip(own, others, strict=True)]
        drawn.append(Example({**example.features, "input_ids": ids}, example.row))
    batch = task.collate(drawn, tokenizer.pad_token_id)
    return to_device(task.model_inputs(batch, tuned.model), device)


def _logits(outputs: Any) -> torch.Tensor:
    """All that the head gives."""
    return torch.cat([value.float().flatten() for name, value in outputs.items() if name.endswith("logits")])
