"""Reads what a recipe names: rows, files and tokenizer, and from them examples and the base model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from peftlab.component import Precision
from peftlab.data.examples import Encoded, Splits
from peftlab.distributed import DeviceMap
from peftlab.loading.encoding import encode
from peftlab.loading.model import Base, LoadOptions, load_base, load_tokenizer, longest_input
from peftlab.loading.tokens import add_tokens
from peftlab.methods.method import TrainedToken
from peftlab.models import remote_code
from peftlab.models.model import ModelFiles
from peftlab.recipe import Recipe
from peftlab.tasks import Task

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Inputs:
    """Everything that a workload is built from, before there is a model."""

    recipe: Recipe
    rows: Splits
    files: ModelFiles
    task: Task  # bound to the rows
    tokenizer: PreTrainedTokenizerBase
    limit: int  # tokens of the longest input
    tokens: tuple[TrainedToken, ...] = ()  # whose embeddings are trained

    def encoded(self, split: str, count: int | None = None) -> tuple[Encoded, dict[str, int]]:
        """Examples of a split, or of its first `count` rows, and numbers of rows left out, by reason."""
        what = f"the {split} split of {self.rows.source}"
        rows, on_bad_row = self.rows.rows[split][:count], self.recipe.data.on_bad_row
        return encode(
            self.task,
            rows,
            self.tokenizer,
            self.limit,
            files=self.files,
            what=what,
            on_bad_row=on_bad_row,
            tokens=[token.text for token in self.tokens],
        )

    def base(self, device: torch.device, precision: Precision, device_map: DeviceMap | None = None) -> Base:
        """Load the base model with the task's head, without the method."""
        return load_base(
            self.recipe.model,
            self.files,
            self.task,
            self.recipe.quantization,
            LoadOptions(
                device=device,
                compute=getattr(torch, precision),
                frozen=not self.recipe.method.trains_base,
                dropout=self.recipe.training.dropout,
                seed=self.recipe.seeds.initialization,
                padding_token=self.tokenizer.pad_token_id,
                device_map=device_map,
            ),
        )


def read_inputs(recipe: Recipe, accelerator: Accelerator, trust: str | None = None) -> Inputs:
    """Read rows, files and tokenizer. `trust`: see `Model.files`. Raises UserError with each row or file at fault."""
    with accelerator.main_process_first():  # one process fetches, the others read its cache
        rows, files = recipe.rows(), recipe.model.files(trust)
        if files.trusted:
            remote_code.install(files.folder)
    task = recipe.task.from_training(rows.rows["train"])
    task = task.bind(row for split in rows.rows.values() for row in split)
    tokenizer = load_tokenizer(files, task)
    tokens = add_tokens(tokenizer, recipe.method.trained_tokens)
    limit = longest_input(files, task, reserved=recipe.method.positions)
    return Inputs(recipe, rows, files, task, tokenizer, limit, tokens)
