"""The base model with a task's head, built from its config alone, without weights."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from peftlab.errors import NotProbed, UserError
from peftlab.models.model import KnownConfig
from peftlab.models.remote_code import FLAG
from peftlab.models.text_branch import auto_class, set_in_text_branch
from peftlab.tasks import Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

WIDTH = 64  # hidden size of the small model that `check` builds
UNKNOWN = "Unrecognized configuration class"  # transformers then lists all architectures


def with_head(config: PretrainedConfig, task: Task, *, trusted: bool = False, **settings: Any) -> PreTrainedModel:
    """Build a model of this config with random weights; `trusted` allows the base's own code.

    The task's settings are set in the config of a text branch, too. Raises UserError if the architecture has no class
    with the task's head.
    """
    set_in_text_branch(config, task.model_settings())
    try:
        auto = auto_class(task.auto_class, config)
        model: PreTrainedModel = auto.from_config(config, trust_remote_code=trusted, **settings)
        return model
    except ValueError as error:
        reason = f": {str(error).partition(chr(10))[0][:200]}"
        if str(error).startswith(UNKNOWN):
            reason = f": transformers has no {task.auto_class} of it"
        if "trust_remote_code" in str(error):
            reason = f" without the base's own code, which {FLAG} allows"
        raise UserError(f"model: a {config.model_type} cannot serve {task.kind}{reason}") from None


def check(known: KnownConfig, task: Task) -> None:
    """Raise UserError if a base with this config has no such head, or attends to the tokens that it must predict."""
    from peftlab.models.tiny_bound import probing  # late: both import transformers
    from peftlab.models.tiny_model import small_config

    try:
        config = small_config({**known.values, **task.model_settings()}, WIDTH)
        with probing(f"no small {config.model_type} serves {task.kind}"):
            model = with_head(config, task)
    except NotProbed as failure:
        warnings.warn(failure, stacklevel=2)
        return
    require_compatible(model, task)


def require_compatible(model: PreTrainedModel, task: Task) -> None:
    """Raise UserError if the model cannot do the task. A probe that fails gives a warning."""
    try:
        reason = task.incompatibility(model)
    except NotProbed as failure:
        warnings.warn(failure, stacklevel=2)
        return
    if reason is not None:
        raise UserError(f"task: {reason}")
