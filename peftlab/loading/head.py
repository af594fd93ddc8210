"""A base with the head that a task wants, and whether the base's own will do: its config says so, without weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftlab.errors import UserError
from peftlab.models.model import Shape
from peftlab.models.remote_code import FLAG
from peftlab.tasks import Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

WIDTH = 64  # of the small model that is asked
UNKNOWN = "Unrecognized configuration class"  # after which transformers lists all the architectures that there are


def with_head(config: PretrainedConfig, task: Task, *, trusted: bool = False, **settings: Any) -> PreTrainedModel:
    """A model of this config with random weights, the base's own code if it is `trusted`.

    Raises UserError if there is none with the task's head.
    """
    import transformers

    try:
        auto = getattr(transformers, task.auto_class)
        model: PreTrainedModel = auto.from_config(config, trust_remote_code=trusted, **settings)
        return model
    except ValueError as error:
        reason = "" if str(error).startswith(UNKNOWN) else f": {str(error).partition(chr(10))[0][:200]}"
        if "trust_remote_code" in str(error):
            reason = f" without the base's own code, which {FLAG} lets run"
        raise UserError(f"model: a {config.model_type} cannot serve {task.kind}{reason}") from None


def check(shape: Shape, task: Task) -> None:
    """Raise UserError if a base of this shape lacks the head, or sees what it is to predict, as a run would find."""
    from peftlab.models.tiny_model import small_config  # here, for it imports transformers

    config = small_config({**shape.values, **task.model_settings()}, WIDTH)
    incompatibility = task.incompatibility(with_head(config, task))
    if incompatibility is not None:
        raise UserError(f"task: {incompatibility}")
