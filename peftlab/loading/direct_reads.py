"""Linear layers whose weight the model reads itself, past their forward; found on a tiny model of the same config."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from peftlab.errors import UserError
from peftlab.loading.head import with_head
from peftlab.models.tiny_model import smaller
from peftlab.quantization import Quantization
from peftlab.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

WIDTH, LENGTH = 64, 8
# Of a trial that fails: the architecture then has no layers that are known to be read.
TRIAL_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def directly_read(skeleton: PreTrainedModel, task: Task, quantization: Quantization) -> list[str]:
    """Full names of the linear layers of `skeleton` whose weight something other than their own forward reads.

    A packed weight would give it integers, so these layers stay in float, unless `quantization` has readable weights.
    Empty as well if a tiny model of the architecture does not run.
    """
    if quantization.readable:
        return []
    config: Any = skeleton.config
    kind: Any = type(config)
    values = json.dumps(config.to_dict(), sort_keys=True, default=str)
    places = _places(kind, values, type(task), task.model_dump_json())  # a task with labels cannot be hashed
    return [name for name, _ in skeleton.named_modules() if _place(name) in places]


class _Watched(nn.Linear):
    """A linear layer that notes a read of its weight from outside its forward."""

    _inside = False

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self._inside = True
        try:
            return super().forward(input)
        finally:
            self._inside = False

    def __getattr__(self, name: str) -> Any:
        if name == "weight" and not self._inside:
            self.__dict__["_read"] = True
        return super().__getattr__(name)


@functools.lru_cache(maxsize=32)
def _places(kind: type[PretrainedConfig], values: str, task_type: type[Task], settings: str) -> frozenset[str]:
    task = task_type.model_validate_json(settings)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            return frozenset(_trial(smaller(kind.from_dict(json.loads(values)), WIDTH), task))
    except (*TRIAL_ERRORS, UserError):
        return frozenset()


def _trial(config: PretrainedConfig, task: Task) -> Sequence[str]:
    """Names of the layers that a forward in each mode reads, with `*` for numbers."""
    model: Any = with_head(config, task)
    watched = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    for module in watched.values():
        module.__class__ = _Watched
    inputs = {"input_ids": torch.ones(1, LENGTH, dtype=torch.int64)}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        for training in (True, False):  # Gemma 3n clamps weights in training
            model.train(training)(**inputs)
    return [_place(name) for name, module in watched.items() if "_read" in vars(module)]


def _place(name: str) -> str:
    """A module's name without the numbers of its layer and expert.

    >>> _place("encoder.block.11.mlp.experts.expert_2.wo"), _place("layers.0.fc1")
    ('encoder.block.*.mlp.experts.expert_*.wo', 'layers.*.fc1')
    """
    return re.sub(r"(?<=[._])\d+(?=\.|$)", "*", name)
