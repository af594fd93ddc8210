"""The recipe's method on its base: attached, or refused with the reason."""

from __future__ import annotations

import torch

from peftlab.errors import UserError
from peftlab.loading.model import Base, within
from peftlab.methods import TrainingPlan
from peftlab.recipe import Recipe
from peftlab.results.run_result import Parameters


def apply_method(recipe: Recipe, base: Base, plan: TrainingPlan) -> torch.nn.Module:
    """Attach the recipe's method, its values drawn from the recipe's seed whatever was drawn before."""
    reason = recipe.incompatible_with(base.model.config.model_type)
    if reason is not None:
        raise UserError(f"method: {reason}")
    torch.manual_seed(plan.seed)
    try:
        model = recipe.method.apply(base.model, plan)
    except UserError:
        raise
    except ValueError as error:  # what PEFT finds wrong with a setting
        raise UserError(f"method: {' '.join(str(error).split())[:200]}") from None
    if recipe.training.gradient_checkpointing:
        # After the method is attached, and undone in part: both libraries make the inputs require gradients, which
        # sends the backward pass through the whole frozen trunk; non-reentrant checkpointing does without.
        if not base.model.supports_gradient_checkpointing:
            raise UserError(f"training.gradient_checkpointing: {base.model.config.model_type} does not support it")
        newer = getattr(base.model, "activation_checkpointing_enable", None)  # the older name goes in transformers 6
        (newer or base.model.gradient_checkpointing_enable)({"use_reentrant": False})
        base.model.disable_input_require_grads()
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError(f"method: {recipe.method.kind} left nothing to train in {base.files.source}")
    return model


def count_parameters(model: torch.nn.Module, base: Base) -> Parameters:
    """Trainable numbers, the method's and the head's apart."""
    trainable = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    head = sum(count for name, count in trainable.items() if within(name, base.head))
    total = sum(trainable.values())
    return Parameters(
        method=total - head,
        head=head,
        trainable=total,
        base=base.parameters,
        trainable_fraction=round(total / base.parameters, 6),
    )
