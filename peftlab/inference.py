"""Using a tuned model: answers for new text, and the method folded into its base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from peftlab import artifact
from peftlab.part import BadInput
from peftlab.quantization.none import NoQuantization
from peftlab.training import predict

TOKENS = 4096  # of a batch


def answers(folder: Path, lines: Sequence[str], where: str) -> Iterator[dict[str, Any]]:
    """What the run's model says of each line that is not blank."""
    accelerator = Accelerator()
    tuned = artifact.load(folder, device=accelerator.device)
    task = tuned.card.task
    rows = [task.row(line, f"{where}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]
    encoded = task.encode(rows, tuned.tokenizer, tuned.card.limit)
    records = predict(
        tuned.model,
        task=task,
        examples=encoded.examples,
        padding_token=tuned.tokenizer.pad_token_id,
        batch_tokens=TOKENS,
        accelerator=accelerator,
        autocast=tuned.autocast,
    )
    for record in records:
        yield task.answer(record)


def merge(folder: Path, output: Path) -> float:
    """Write base and method as one model at the base's original precision; return how far its logits moved.

    Merging into a quantised base would round the sum anew (logits move by tenths); here the base is taken as published,
    and the difference to the model as it was trained is measured on the tokenizer's own vocabulary.
    """
    card = artifact.read_card(folder)
    if not card.method.merges:
        raise BadInput(f"{folder}: {card.method.kind} computes beside the base and cannot be merged into it")
    device = Accelerator().device
    trained = artifact.load(folder, device=device)
    whole = artifact.load(folder, device=device, quantization=NoQuantization())
    merged = card.method.merge(whole.model)
    inputs = _sample(trained.base.model.config.vocab_size, card.limit, device)
    with torch.no_grad():
        difference = float((trained.model(**inputs).logits - merged(**inputs).logits).abs().max())
    merged.save_pretrained(output)  # type: ignore[operator]
    trained.tokenizer.save_pretrained(output)
    return difference


def _sample(vocabulary: int, limit: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Four rows of arbitrary tokens, always the same."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (4, min(64, limit)), generator=generator)
    return {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}
