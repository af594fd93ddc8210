"""The probe: a tiny model of a recipe's own architecture with random weights, and one training of it."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from peftlab.component import Precision
from peftlab.data.examples import Example
from peftlab.errors import UserError
from peftlab.loading.attach import apply_method, training_plan
from peftlab.loading.attention import use_attention
from peftlab.loading.head import with_head
from peftlab.loading.model import Base, LoadOptions, load_base, within
from peftlab.loading.tokens import add_tokens
from peftlab.methods import Method, TrainingPlan
from peftlab.methods.method import TrainedToken
from peftlab.models.byte_tokenizer import byte_tokenizer
from peftlab.models.model import ModelFiles
from peftlab.models.tiny_bound import probing
from peftlab.models.tiny_model import small_config
from peftlab.recipe import Recipe
from peftlab.tasks import Task
from peftlab.training import gradient_checks, loop
from peftlab.training.callbacks import Callback
from peftlab.training.gradient_checks import GradientStats
from peftlab.training.precision import autocast, resolve_precision
from peftlab.training.state import TrainState
from peftlab.training.train_log import Records, Scores
from peftlab.training.workload import Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STEPS = 10  # of a training; it is evaluated once, half-way
WIDTH = 256  # hidden size of the tiny model, where the base is wider
SHORTEST_LIMIT = 64  # tokens: with one token per byte the sample rows are longer than a recipe's own might be

# What libraries raise for a combination that they do not support. The doctor reports it.
LIBRARY_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class ProbeModel:
    """A recipe and what makes tiny models for it. Dropout is off: what is compared must repeat."""

    recipe: Recipe
    task: Task
    """Bound to the examples."""
    examples: Sequence[Example]
    tokenizer: PreTrainedTokenizerBase
    tokens: tuple[TrainedToken, ...]
    """Tokens whose embeddings are trained; the examples contain them."""
    device: torch.device
    precision: Precision
    load: Callable[[Recipe, torch.dtype], Base]
    """Returns a base of its own at each call."""

    @property
    def method(self) -> Method:
        return self.recipe.method

    def base(self) -> Base:
        """A fresh base, as a run loads it."""
        return self.load(self.recipe, getattr(torch, self.precision))

    def plan(self, base: Base) -> TrainingPlan:
        return training_plan(
            self.recipe,
            base,
            task=self.task,
            tokenizer=self.tokenizer,
            optimizer_steps=STEPS,
            longest_input=max(len(example) for example in self.examples),
            tokens=self.tokens,
        )

    def attached(self) -> tuple[Base, nn.Module]:
        """A fresh base, and the recipe's method attached to it as a run attaches it."""
        base = self.base()
        return base, apply_method(self.recipe, base, self.plan(base))

    def workload(self, model: nn.Module, *, steps: int = STEPS) -> Workload:
        """`steps` steps of the recipe's training at a constant learning rate, each on all examples."""
        settings = {
            **{"steps": steps, "epochs": None, "batch_examples": len(self.examples), "batch_tokens": None},
            **{"schedule": "constant", "warmup": 0.0, "accumulation": 1, "clip": None},
            **{"evaluate_every": max(1, steps // 2), "patience": None, "keep_best": False},
        }
        return Workload(
            model=model,
            method=self.method,
            task=self.task,
            examples=self.examples,
            padding_token=self.tokenizer.pad_token_id,
            settings=self.recipe.training.model_copy(update=settings),
            learning_rate=self.recipe.learning_rate,
            seeds=self.recipe.seeds,
            accelerator=Accelerator(cpu=self.device.type == "cpu"),
            evaluate=self.evaluate,
            precision=self.precision,
            check_gradients=False,
        )

    def evaluate(self) -> tuple[Scores, Records]:
        """An evaluation that computes nothing."""
        return {self.task.selection: 0.0}, []

    def logits(self, model: nn.Module) -> Tensor:
        """All float outputs in evaluation mode, flat; outputs per position without those of padding."""
        was_training = model.training
        model.eval()
        batch = self.task.collate(self.examples, self.tokenizer.pad_token_id)
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        with torch.no_grad(), autocast(self.precision, self.device):
            outputs: Any = model(**self.task.model_inputs(batch, model))
        model.train(was_training)
        mask = batch["attention_mask"]
        logits = []
        for name, value in outputs.items():
            if name.endswith("logits"):
                by_position = value.shape[:2] == mask.shape
                logits.append((value[mask.bool()] if by_position else value).float().flatten())
        return torch.cat(logits)


@dataclass(frozen=True)
class ProbeRun:
    """One training of a probe model, and what was observed."""

    probe: ProbeModel
    base: Base
    model: nn.Module
    """Trained."""
    unexpected_trainable: tuple[str, ...]
    """Parameters of the base, outside the head, that require a gradient."""
    frozen: Mapping[str, tuple[Tensor, Tensor]]
    """The base's frozen tensors by name: now, and a copy from before training."""
    before: Sequence[GradientStats]
    """Statistics of each step before the evaluation."""
    evaluated: Mapping[str, Tensor]
    """Copies of the trainable tensors at the evaluation."""
    after: Sequence[GradientStats]
    """Statistics of each step after the evaluation."""
    error: Exception | None
    """Error that ended training after the evaluation, if it did not finish."""


class InspectGradients(Callback):
    """Collects the gradient stats of each step."""

    def __init__(self) -> None:
        self.stats: list[GradientStats] = []

    def on_gradients(self, state: TrainState) -> None:
        self.stats.append(gradient_checks.inspect(state.workload.model, state.optimizer_step.gradient))


def make_probe_model(
    recipe: Recipe, values: Mapping[str, Any], folder: Path, *, device: torch.device, width: int = WIDTH
) -> ProbeModel:
    """Write a tiny base with random weights into `folder`.

    Raises UserError if there is no such model, and NotProbed if it does not run by itself.
    """
    config = small_config(values, width)
    tokenizer = byte_tokenizer(config)
    rows = recipe.task.sample_rows()
    task = recipe.task.from_training(rows).bind(rows)
    tokens = add_tokens(tokenizer, recipe.method.trained_tokens)
    examples = task.encode(rows, tokenizer, limit=max(SHORTEST_LIMIT, task.max_length or 512)).examples
    files = ModelFiles(folder=folder, source=f"a small {config.model_type}", fingerprint="")
    config = type(config).from_dict({**config.to_dict(), **task.model_settings()})
    torch.manual_seed(0)
    with probing(f"no small {config.model_type} serves {task.kind}"):
        random_model = with_head(config, task)
    incompatibility = task.incompatibility(random_model)
    if incompatibility is not None:
        raise UserError(f"task: {incompatibility}")
    _require_forward(random_model, task, examples, tokenizer.pad_token_id)
    examples = _containing(examples, tokens)
    random_model.save_pretrained(folder)
    recipe = recipe.model_copy(update={"method": without_dropout(recipe.method)})

    @functools.cache
    def load(quantization: Any, frozen: bool, compute: torch.dtype) -> Base:
        settings = {"device": device, "compute": compute, "frozen": frozen, "padding_token": tokenizer.pad_token_id}
        return load_base(recipe.model, files, task, quantization, LoadOptions(**settings))

    def copy_of_base(recipe: Recipe, compute: torch.dtype) -> Base:
        base = load(recipe.quantization, not recipe.method.trains_base, compute)
        if recipe.training.attention != "auto":
            use_attention(base.model, recipe.training.attention)
        return dataclasses.replace(base, model=copy.deepcopy(base.model))

    return ProbeModel(
        recipe=recipe,
        task=task,
        examples=examples,
        tokenizer=tokenizer,
        tokens=tokens,
        device=device,
        precision=resolve_precision(recipe.training.precision, device),
        load=copy_of_base,
    )


def _containing(examples: Sequence[Example], tokens: Sequence[TrainedToken]) -> list[Example]:
    """The examples with the second token of each replaced by one of `tokens` in turn: no sample row has them."""
    changed = list(examples)
    for number, token in enumerate(tokens):
        example = changed[number % len(changed)]
        place = 1 + number // len(changed)
        ids = [*example.features["input_ids"][:place], token.id, *example.features["input_ids"][place + 1 :]]
        changed[number % len(changed)] = dataclasses.replace(example, features={**example.features, "input_ids": ids})
    return changed


def _require_forward(model: PreTrainedModel, task: Task, examples: Sequence[Example], padding_token: int) -> None:
    """Raise NotProbed if the model without any method fails on the examples."""
    batch = task.collate(examples, padding_token)
    model = copy.deepcopy(model).eval()
    model.config.get_text_config().pad_token_id = padding_token
    with probing(f"a small {model.config.model_type} without a method fails"), torch.no_grad():
        task.loss(model(**task.model_inputs(batch, model)), batch)


def make_probe_run(probe: ProbeModel) -> ProbeRun:
    """Train with one evaluation, half-way. None comes before it: an evaluation is what may break training.

    Raises what breaks the training before the evaluation; what breaks it later is in the ProbeRun.
    """
    base = probe.base()
    of_base = {id(parameter): parameter for parameter in base.model.parameters()}  # held, so that no id is reused
    model = apply_method(probe.recipe, base, probe.plan(base))
    unexpected = tuple(
        name
        for name, p in model.named_parameters()
        if id(p) in of_base and p.requires_grad and not within(name, base.head)
    )
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    frozen = {
        name: (tensor, tensor.detach().clone())
        for name, tensor in tensors.items()
        if not tensor.requires_grad and not within(name, base.head)
    }
    evaluated: dict[str, Tensor] = {}

    def evaluate() -> tuple[Scores, Records]:
        if not evaluated:
            probe.logits(model)
            evaluated.update(copies_of_trainable(model))
        return probe.evaluate()

    gradients = InspectGradients()
    error = None
    try:
        loop.train(dataclasses.replace(probe.workload(model), evaluate=evaluate), [gradients])
    except LIBRARY_ERRORS as raised:
        if not evaluated:
            raise
        error = raised
    half = STEPS // 2
    return ProbeRun(
        probe, base, model, unexpected, frozen, gradients.stats[:half], evaluated, gradients.stats[half:], error
    )


def without_dropout(method: Method) -> Method:
    """The method with each of its dropout settings at 0."""
    return type(method).model_validate(_no_dropout(method.model_dump()))


def _no_dropout(values: dict[str, Any]) -> dict[str, Any]:
    """
    >>> _no_dropout({"rank": 4, "dropout": 0.1, "settings": {"lora_dropout": 0.1}})
    {'rank': 4, 'dropout': 0.0, 'settings': {'lora_dropout': 0.0}}
    """
    changed = {}
    for key, value in values.items():
        if isinstance(value, dict):
            value = _no_dropout(value)
        changed[key] = 0.0 if "dropout" in key and isinstance(value, float) else value
    return changed


def copies_of_trainable(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the trainable tensors, by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def first_line(error: Exception) -> str:
    """The first line of the error's message that is not empty."""
    return next((line for line in str(error).splitlines() if line.strip()), "")
