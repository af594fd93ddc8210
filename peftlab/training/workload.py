"""Everything that a training depends on, in one value: the loop, the profiler and the doctor's probe share it.

It does not depend on recipes, so that the loop can be used without one. `peftlab.loading.inputs.Inputs` is what a
recipe names before there is a model.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from peftlab.component import Precision
from peftlab.data.examples import Example
from peftlab.distributed.deepspeed import ZeroSettings
from peftlab.methods.method import Method
from peftlab.tasks.task import Task
from peftlab.training.precision import autocast
from peftlab.training.settings import Seeds, Training
from peftlab.training.train_log import Records, Scores, Validation

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model that is ready to train, its data and its settings."""

    model: nn.Module
    """The base model with the method attached. Parameters that require a gradient are trained."""
    method: Method
    task: Task
    """Bound to the data: it knows the labels."""
    examples: Sequence[Example]
    """Encoded training examples."""
    padding_token: int
    """Token id that fills a batch up to its longest example."""
    settings: Training
    learning_rate: float
    """Resolved: the recipe's, or the method's default."""
    seeds: Seeds
    accelerator: Accelerator
    evaluate: Callable[[], tuple[Scores, Records] | Validation]
    """Scores the model as it is on the validation split. Returns the scores and one record per example, and the loss if
    it is computed."""
    precision: Precision = "float32"
    zero: ZeroSettings | None = None
    """DeepSpeed's ZeRO, if it shards the training."""
    check_gradients: bool = True
    """Raise UserError if a trainable tensor gets no gradient. The doctor reports it instead."""

    @functools.cached_property
    def lengths(self) -> list[int]:
        """Tokens of each example, counted once."""
        return [len(example) for example in self.examples]

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Context of a forward pass in this precision."""
        return autocast(self.precision, self.accelerator.device)
