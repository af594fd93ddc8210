"""The workload that is profiled: a recipe's model and one batch of fixed shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.multiprocessing.reductions import StorageWeakRef

from peftlab.component import Precision
from peftlab.data.examples import Example
from peftlab.distributed.fsdp import FsdpSettings, to_local
from peftlab.errors import UserError
from peftlab.loading.attach import apply_method, training_plan
from peftlab.loading.attention import choose_attention, current_attention, use_attention
from peftlab.loading.inputs import read_inputs
from peftlab.loading.model import Base
from peftlab.loading.reach import measure_reach, reach_lines
from peftlab.profiling.memory import holdings
from peftlab.recipe import Recipe
from peftlab.results.reach import Reach
from peftlab.tasks import Task
from peftlab.training import loop
from peftlab.training.callbacks import Callback, Phase
from peftlab.training.precision import resolve_precision
from peftlab.training.settings import Training
from peftlab.training.train_log import Records, Scores, TrainLog
from peftlab.training.workload import Workload

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LENGTH = 128  # tokens per example, unless the recipe or the base model allows fewer
PLANNED_STEPS = 1000  # of the method's training plan: the profile is of its start, where AdaLoRA has its initial ranks


@dataclass(frozen=True)
class ProfiledWorkload:
    """A workload, and what separates the bytes of its base model, method and head."""

    recipe: Recipe
    workload: Workload
    head: tuple[str, ...]
    """Names of the task's head modules."""
    base_storages: Mapping[StorageWeakRef, object]
    """Storages of the base model before the method was attached."""
    reach: Reach
    reach_sentences: tuple[str, ...]
    """The reach in words."""
    attention: str | None
    """transformers' name of the attention kernel."""

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return sum(sum(self.workload.task.lengths(example)) for example in self.workload.examples)

    def sharded(self, mesh: DeviceMesh) -> ProfiledWorkload:
        """The same after sharding its model over the processes of `mesh`."""
        model = self.workload.model
        base_parameters = [
            name for name, p in model.named_parameters() if StorageWeakRef(p.untyped_storage()) in self.base_storages
        ]
        FsdpSettings().shard(model, mesh)
        shards = [StorageWeakRef(to_local(model.get_parameter(name)).untyped_storage()) for name in base_parameters]
        return dataclasses.replace(self, base_storages={**self.base_storages, **dict.fromkeys(shards)})

    def train(
        self,
        steps: int,
        *,
        mark: Callable[[Phase], object] = lambda phase: None,
        evaluate: Callable[[], object] = lambda: None,
    ) -> TrainLog:
        """Take `steps` steps of the recipe's training, each on all examples; call `evaluate` after the last one."""
        workload = self.workload

        def score() -> tuple[Scores, Records]:
            evaluate()
            return {workload.task.selection: 0.0}, []

        settings = on_one_batch(workload.settings, steps=steps, examples=len(workload.examples))
        return loop.train(dataclasses.replace(workload, settings=settings, evaluate=score), [PhaseMarks(mark)])

    def forward(self, model: nn.Module) -> Any:
        """The outputs of one forward pass, without gradients."""
        workload = self.workload
        batch = workload.task.collate(workload.examples, workload.padding_token)
        batch = {name: tensor.to(workload.accelerator.device) for name, tensor in batch.items()}
        with torch.no_grad(), workload.autocast():
            return model(**workload.task.model_inputs(batch, workload.model))


class PhaseMarks(Callback):
    """Calls a recorder at the end of each phase of a step."""

    def __init__(self, mark: Callable[[Phase], object]) -> None:
        self._mark = mark

    def on_phase_end(self, phase: Phase) -> None:
        self._mark(phase)


def load(recipe: Recipe, accelerator: Accelerator, *, examples: int | None, length: int | None) -> ProfiledWorkload:
    """Load the recipe's base model and data, and attach the method, as a run does. Raises UserError."""
    inputs = read_inputs(recipe, accelerator)
    count, length = batch_shape(recipe.training, inputs.limit, examples=examples, length=length)
    encoded, _ = inputs.encoded("train", count)
    trainable = inputs.task.training_examples(encoded.examples, inputs.limit)
    if not trainable:
        source = inputs.rows.source
        raise UserError(f"data: the first {count} rows of the train split of {source} have nothing to learn")
    precision = resolve_precision(recipe.training.precision, accelerator.device)
    return attach(
        recipe,
        inputs.base(accelerator.device, precision),
        [inputs.task.stretched(trainable[i % len(trainable)], length) for i in range(count)],
        task=inputs.task,
        tokenizer=inputs.tokenizer,
        accelerator=accelerator,
        precision=precision,
    )


def attach(
    recipe: Recipe,
    base: Base,
    examples: Sequence[Example],
    *,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    precision: Precision,
    device: torch.device | None = None,
) -> ProfiledWorkload:
    """Attach the recipe's method to the base model. The attention is chosen for `device`; None: the accelerator's."""
    base_storages = holdings(base.model)
    plan = training_plan(
        recipe,
        base,
        task=task,
        tokenizer=tokenizer,
        optimizer_steps=recipe.training.steps or PLANNED_STEPS,
        longest_input=max(len(example) for example in examples),
    )
    lengths = [len(example) for example in examples]
    device = accelerator.device if device is None else device
    use_attention(base.model, choose_attention(base.model, recipe.training, lengths, precision, device))
    model = apply_method(recipe, base, plan)
    reach = measure_reach(recipe.method, base, model)
    workload = Workload(
        model=model,
        method=recipe.method,
        task=task,
        examples=examples,
        padding_token=tokenizer.pad_token_id,
        settings=recipe.training,
        learning_rate=recipe.learning_rate,
        seeds=recipe.seeds,
        accelerator=accelerator,
        evaluate=lambda: ({task.selection: 0.0}, []),
        precision=precision,
    )
    sentences = tuple(reach_lines(recipe, base, reach))
    attention = current_attention(base.model)
    return ProfiledWorkload(recipe, workload, base.head, base_storages, reach, sentences, attention)


def batch_shape(training: Training, limit: int, *, examples: int | None, length: int | None) -> tuple[int, int]:
    """Number of examples and tokens per example of a batch of the recipe's size without padding.

    `limit` is the base model's maximal length. Raises UserError if `length` exceeds it.

    >>> batch_shape(Training(batch_tokens=512), 512, examples=None, length=None)
    (4, 128)
    >>> batch_shape(Training(batch_examples=8), 64, examples=None, length=None)
    (8, 64)
    """
    if length is not None and length > limit:
        raise UserError(f"--length {length}: the base model takes at most {limit} tokens")
    tokens = training.batch["tokens"]
    length = length or min(LENGTH, limit, tokens or LENGTH)
    return examples or training.batch["examples"] or max(1, (tokens or 0) // length), length


def on_one_batch(training: Training, *, steps: int, examples: int) -> Training:
    """The training settings for `steps` steps, each on one batch of `examples`, with an evaluation at the end."""
    return training.model_copy(
        update={
            **{"steps": steps, "epochs": None, "batch_examples": examples, "batch_tokens": None},
            **{"evaluate_every": steps, "patience": None},
        }
    )
