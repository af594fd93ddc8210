"""The patient: a small model of a recipe's own architecture with random weights, and one training of it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peftlab.component import Precision
from peftlab.data.examples import Example
from peftlab.errors import UserError
from peftlab.loading.attach import apply_method
from peftlab.loading.head import with_head
from peftlab.loading.model import Base, autocast, load_base, resolve_precision, within
from peftlab.methods import Method, TrainingPlan
from peftlab.models.model import ModelFiles
from peftlab.models.tiny_model import byte_tokenizer, small_config
from peftlab.recipe import Recipe
from peftlab.tasks import Task
from peftlab.training import gradient_checks
from peftlab.training.gradient_checks import GradientStats

STEPS = 10  # of a training, an evaluation half-way
WIDTH = 256  # of the small model, where the base is wider
SHORTEST_LIMIT = 64  # tokens: a token a byte, the sample rows are longer than a recipe's own might be


@dataclass(frozen=True)
class ProbeModel:
    """A recipe, and the small base on which it is examined. Dropout is off: what is compared must repeat."""

    recipe: Recipe
    task: Task  # bind to the examples
    examples: Sequence[Example]
    padding_token: int
    tokenize: Callable[[str], list[int]]
    device: torch.device
    precision: Precision
    files: ModelFiles
    load: Callable[[Recipe, torch.dtype], Base]  # a base of one's own

    @property
    def method(self) -> Method:
        return self.recipe.method

    def base(self) -> Base:
        """Fresh, as a run loads it."""
        return self.load(self.recipe, getattr(torch, self.precision))

    def plan(self, base: Base) -> TrainingPlan:
        return TrainingPlan(
            optimizer_steps=STEPS,
            task_type=self.task.task_type,
            head=base.head,
            longest_input=max(len(example) for example in self.examples),
            seed=self.recipe.seeds.initialization,
            tokenize=self.tokenize,
        )

    def attached(self) -> tuple[Base, nn.Module]:
        """A fresh base, and the recipe's method on it as a run attaches it."""
        base = self.base()
        return base, apply_method(self.recipe, base, self.plan(base))

    def batch(self) -> dict[str, Tensor]:
        """All examples, padded."""
        batch = self.task.collate(self.examples, self.padding_token)
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> Any:
        with autocast(self.precision, self.device):
            return model(**self.task.model_inputs(batch, model))

    def logits(self, model: nn.Module) -> Tensor:
        """All the float outputs in evaluation, at positions that are no padding if they are by position."""
        was = model.training
        model.eval()
        batch = self.batch()
        with torch.no_grad():
            outputs = self.outputs(model, batch)
        model.train(was)
        shape = batch["attention_mask"].shape
        found = []
        for name, value in outputs.items():
            if name.endswith("logits"):
                by_position = value.shape[:2] == shape
                found.append((value[batch["attention_mask"].bool()] if by_position else value).float().flatten())
        return torch.cat(found)

    def backward(self, model: nn.Module) -> None:
        """One backward pass of the loss and the method's penalty, from a fixed state of chance."""
        torch.manual_seed(0)
        model.train()
        batch = self.batch()
        with autocast(self.precision, self.device):
            loss = self.task.loss(self.outputs(model, batch), batch) / self.task.count_targets(batch)
        loss.backward()
        penalty = self.method.penalty(model)
        if penalty is not None:
            penalty.backward()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        settings = self.recipe.training
        groups = self.method.parameter_groups(model, self.recipe.learning_rate, settings.weight_decay)
        return torch.optim.AdamW(groups, betas=settings.adam_betas, eps=settings.adam_epsilon)

    def steps(self, model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> list[GradientStats]:
        """Optimiser steps `first` to `last`, counted from 1, and what the gradients looked like in each."""
        seen = []
        for number in range(first, last + 1):
            self.backward(model)
            seen.append(gradient_checks.inspect(model))
            optimizer.step()
            self.method.after_step(model, number)
            optimizer.zero_grad()
        return seen


@dataclass(frozen=True)
class ProbeRun:
    """One training of a patient, and what there was to see."""

    patient: ProbeModel
    base: Base
    model: nn.Module  # trained
    unexpected_trainable: tuple[
        str, ...
    ]  # parameters of the base that are neither head nor the method's, and yet require a gradient
    frozen: Mapping[str, tuple[Tensor, Tensor]]  # the base's frozen tensors: now, and before training
    before: Sequence[GradientStats]  # step by step before the evaluation
    evaluated: Mapping[str, Tensor]  # what is trainable, as it was then
    after: Sequence[GradientStats]


def make_probe_model(
    recipe: Recipe, shape: Mapping[str, Any], folder: Path, *, device: torch.device, width: int = WIDTH
) -> ProbeModel:
    """Write a base of two layers with random weights into `folder`. Raises UserError if there is no such model."""
    config = small_config(shape, width)
    tokenizer = byte_tokenizer(config)
    rows = recipe.task.sample_rows()
    task = recipe.task.from_training(rows).bind(rows)
    examples = task.encode(rows, tokenizer, limit=max(SHORTEST_LIMIT, task.max_length or 512)).examples
    files = ModelFiles(folder=folder, source=f"a small {config.model_type}", fingerprint="")
    config = type(config).from_dict({**config.to_dict(), **task.model_settings()})
    torch.manual_seed(0)
    whole = with_head(config, task)
    incompatibility = task.incompatibility(whole)
    if incompatibility is not None:
        raise UserError(f"task: {incompatibility}")
    whole.save_pretrained(folder)
    recipe = recipe.model_copy(update={"method": without_dropout(recipe.method)})

    @functools.cache
    def load(quantization: Any, frozen: bool, compute: torch.dtype) -> Base:
        settings = {"device": device, "compute": compute, "frozen": frozen, "padding_token": tokenizer.pad_token_id}
        return load_base(recipe.model, files, task, quantization, **settings)

    def fresh(wanted: Recipe, compute: torch.dtype) -> Base:
        kept = load(wanted.quantization, not wanted.method.trains_base, compute)
        return Base(copy.deepcopy(kept.model), kept.head, kept.parameters, kept.files)

    return ProbeModel(
        recipe=recipe,
        task=task,
        examples=examples,
        padding_token=tokenizer.pad_token_id,
        tokenize=lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"]),
        device=device,
        precision=resolve_precision(recipe.training.precision, device),
        files=files,
        load=fresh,
    )


def make_probe_run(patient: ProbeModel) -> ProbeRun:
    """Train, evaluate, train on. Nothing is evaluated before: an evaluation is what may break training."""
    base = patient.base()
    own = {id(parameter): parameter for parameter in base.model.parameters()}  # kept, so that no id is given twice
    model = apply_method(patient.recipe, base, patient.plan(base))
    unexpected_trainable = tuple(
        name for name, p in model.named_parameters() if id(p) in own and p.requires_grad and not within(name, base.head)
    )
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    frozen = {
        name: (tensor, tensor.detach().clone())
        for name, tensor in tensors.items()
        if not tensor.requires_grad and not within(name, base.head)
    }
    optimizer = patient.optimizer(model)
    before = patient.steps(model, optimizer, 1, STEPS // 2)
    patient.logits(model)
    evaluated = copies_of_trainable(model)
    after = patient.steps(model, optimizer, STEPS // 2 + 1, STEPS)
    return ProbeRun(patient, base, model, unexpected_trainable, frozen, before, evaluated, after)


def without_dropout(method: Method) -> Method:
    """The method, none of its dropouts on."""
    return type(method).model_validate(_no_dropout(method.model_dump()))


def _no_dropout(values: dict[str, Any]) -> dict[str, Any]:
    """
    >>> _no_dropout({"rank": 4, "dropout": 0.1, "settings": {"lora_dropout": 0.1}})
    {'rank': 4, 'dropout': 0.0, 'settings': {'lora_dropout': 0.0}}
    """
    found = {}
    for key, value in values.items():
        if isinstance(value, dict):
            value = _no_dropout(value)
        found[key] = 0.0 if "dropout" in key and isinstance(value, float) else value
    return found


def copies_of_trainable(model: nn.Module) -> dict[str, Tensor]:
    """By name."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def put_back(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """What `copies_of_trainable` gave."""
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "")
