"""Attaches the recipe's method to its base model, or refuses with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from peftlab.errors import UserError
from peftlab.loading.model import Base, within
from peftlab.loading.tokens import add_tokens
from peftlab.methods import TrainingPlan
from peftlab.methods.method import TrainedToken
from peftlab.recipe import Recipe
from peftlab.results.run_result import Parameters
from peftlab.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def training_plan(
    recipe: Recipe,
    base: Base,
    *,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    optimizer_steps: int,
    longest_input: int,
    tokens: tuple[TrainedToken, ...] | None = None,
) -> TrainingPlan:
    """Facts of the training that the method may know before it starts. `longest_input` is in tokens.

    `tokens` are what `add_tokens` returned for this tokenizer; None: it has not been called.
    """
    if tokens is None:
        tokens = add_tokens(tokenizer, recipe.method.trained_tokens)
    return TrainingPlan(
        optimizer_steps=optimizer_steps,
        task_type=task.task_type,
        head=base.head,
        longest_input=longest_input,
        seed=recipe.seeds.initialization,
        tokens=tokens,
        tokenize=lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"]),
    )


def apply_method(recipe: Recipe, base: Base, plan: TrainingPlan) -> torch.nn.Module:
    """Attach the recipe's method. Its initial values depend on the plan's seed alone. Raises UserError."""
    return _attach(recipe, base, plan, lambda: recipe.method.apply(base.model, plan))


def load_method(recipe: Recipe, base: Base, plan: TrainingPlan, folder: Path) -> torch.nn.Module:
    """Attach the recipe's method with the values saved in `folder`, to train them further. Raises UserError."""
    return _attach(recipe, base, plan, lambda: recipe.method.load(base.model, folder, trainable=True))


def _attach(recipe: Recipe, base: Base, plan: TrainingPlan, attach: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    reason = recipe.incompatible_with(base.model.config.model_type)
    if reason is not None:
        raise UserError(f"method: {reason}")
    torch.manual_seed(plan.seed)
    try:
        model = attach()
    except UserError:
        raise
    except ValueError as error:  # PEFT refuses a setting
        raise UserError(f"method: {' '.join(str(error).split())[:200]}") from None
    if recipe.training.gradient_checkpointing:
        # After the method is attached, and undone in part: both libraries make the inputs require gradients, which
        # sends the backward pass through the frozen trunk; non-reentrant checkpointing does without.
        if not base.model.supports_gradient_checkpointing:
            raise UserError(f"training.gradient_checkpointing: {base.model.config.model_type} does not support it")
        newer = getattr(base.model, "activation_checkpointing_enable", None)  # the older name goes in transformers 6
        (newer or base.model.gradient_checkpointing_enable)({"use_reentrant": False})
        base.model.disable_input_require_grads()
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError(f"method: {recipe.method.kind} left nothing to train in {base.files.source}")
    return model


def count_parameters(model: torch.nn.Module, base: Base) -> Parameters:
    """Numbers of trainable parameters, of the method and of the head, and of the base's parameters."""
    trainable = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    head = sum(count for name, count in trainable.items() if within(name, base.head))
    total = sum(trainable.values())
    return Parameters(
        method=total - head,
        head=head,
        trainable=total,
        base=base.parameters,
        trainable_fraction=round(total / base.parameters, 6),
        outside_text=sum(base.outside_text.values()) or None,
    )
