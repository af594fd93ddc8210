"""Fills in the ledger of a recipe: the loop's own steps on one batch, for bytes, for operations, and timed."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import register_optimizer_step_post_hook

from peftlab.component import Precision
from peftlab.data.examples import Example
from peftlab.distributed.fsdp import FsdpSettings, to_local
from peftlab.errors import UserError
from peftlab.loading.attach import apply_method, training_plan
from peftlab.loading.inputs import read_inputs
from peftlab.loading.model import Base
from peftlab.profiling.flops import FlopRecorder, matrix_rate
from peftlab.profiling.memory import Recorder, holdings, process_peak, recorder, static_bytes, tensor_bytes
from peftlab.profiling.profile import Flops, Inference, Memory, Profile, Times, memory_of, quantile
from peftlab.recipe import Recipe
from peftlab.results.environment import environment
from peftlab.tasks import Task
from peftlab.training import loop
from peftlab.training.callbacks import Callback, Phase
from peftlab.training.precision import resolve_precision
from peftlab.training.settings import Training
from peftlab.training.train_log import Records, Scores, TrainLog
from peftlab.training.workload import Workload

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LENGTH = 128  # tokens of an example, if neither the recipe nor the base allows less
PLANNED_STEPS = 1000  # what a method is told of the run: at its start, where AdaLoRA has its initial ranks
STEADY = 3  # the step that is written down: the optimiser's state is there, and everything has been through once
WARMUP, TIMED = 3, 10  # steps of the timed pass


@dataclass(frozen=True)
class Subject:
    """A workload that is measured, and what tells the bytes of its base, method and head apart."""

    recipe: Recipe
    workload: Workload
    head: tuple[str, ...]  # modules of the task's head, by full name
    before: Mapping[StorageWeakRef, object]  # the base's storages before the method was attached

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return sum(sum(self.workload.task.lengths(example)) for example in self.workload.examples)

    def sharded(self, mesh: DeviceMesh) -> Subject:
        """The same subject after sharding its model over the processes of `mesh`."""
        model = self.workload.model
        of_base = [name for name, p in model.named_parameters() if StorageWeakRef(p.untyped_storage()) in self.before]
        FsdpSettings().shard(model, mesh)
        shards = [StorageWeakRef(to_local(model.get_parameter(name)).untyped_storage()) for name in of_base]
        return dataclasses.replace(self, before={**self.before, **dict.fromkeys(shards)})

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

        settings = fixed(workload.settings, steps=steps, examples=len(workload.examples))
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


def measure(recipe: Recipe, *, examples: int | None = None, length: int | None = None, timed: bool = True) -> Profile:
    """Load what the recipe names and measure it. The batch is the recipe's, of `examples` of `length` tokens each.

    Raises UserError if the recipe cannot be attached to its base, or the base cannot take such a batch.
    """
    accelerator = Accelerator(mixed_precision="no")
    subject = load(recipe, accelerator, examples=examples, length=length)
    return measured(subject, timed=timed)


def load(recipe: Recipe, accelerator: Accelerator, *, examples: int | None, length: int | None) -> Subject:
    """Load the recipe's base and data, and attach the method, as a run does."""
    inputs = read_inputs(recipe, accelerator)
    count, length = batch_shape(recipe.training, inputs.limit, examples=examples, length=length)
    encoded, _ = inputs.encoded("train", count)
    chosen = inputs.task.training_examples(encoded.examples, inputs.limit)
    if not chosen:
        source = inputs.rows.source
        raise UserError(f"data: the first {count} rows of the train split of {source} have nothing to learn")
    precision = resolve_precision(recipe.training.precision, accelerator.device)
    return subject(
        recipe,
        inputs.base(accelerator.device, precision),
        [inputs.task.stretched(chosen[i % len(chosen)], length) for i in range(count)],
        task=inputs.task,
        tokenizer=inputs.tokenizer,
        accelerator=accelerator,
        precision=precision,
    )


def subject(
    recipe: Recipe,
    base: Base,
    examples: Sequence[Example],
    *,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    precision: Precision,
) -> Subject:
    """Attach the recipe's method to the base."""
    before = holdings(base.model)
    plan = training_plan(
        recipe,
        base,
        task=task,
        tokenizer=tokenizer,
        optimizer_steps=recipe.training.steps or PLANNED_STEPS,
        longest_input=max(len(example) for example in examples),
    )
    workload = Workload(
        model=apply_method(recipe, base, plan),
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
    return Subject(recipe, workload, base.head, before)


def batch_shape(training: Training, limit: int, *, examples: int | None, length: int | None) -> tuple[int, int]:
    """Examples and tokens of each that stand for the recipe's batch, none padded.

    >>> batch_shape(Training(batch_tokens=512), 512, examples=None, length=None)
    (4, 128)
    >>> batch_shape(Training(batch_examples=8), 64, examples=None, length=None)
    (8, 64)
    """
    if length is not None and length > limit:
        raise UserError(f"--length {length}: the base takes at most {limit} tokens")
    of_batch = training.batch
    tokens = of_batch["tokens"]
    length = length or min(LENGTH, limit, tokens or LENGTH)
    return examples or of_batch["examples"] or max(1, (tokens or 0) // length), length


def fixed(training: Training, *, steps: int, examples: int) -> Training:
    """The same training of so many steps, each on one batch of so many examples, looked at only at its end."""
    return training.model_copy(
        update={
            **{"steps": steps, "epochs": None, "batch_examples": examples, "batch_tokens": None},
            **{"evaluate_every": steps, "patience": None},
        }
    )


def measured(subject: Subject, *, timed: bool = True) -> Profile:
    """The whole ledger. The model has been trained by it, and may have been merged."""
    device = subject.workload.accelerator.device
    memory = memory_pass(subject, recorder(device))
    flops = flops_pass(subject)
    operations = (flops.forward + flops.backward) * subject.tokens
    times = time_pass(subject, operations) if timed else None
    return Profile(
        name=subject.recipe.name,
        digest=subject.recipe.digest,
        examples=len(subject.workload.examples),
        length=max(len(example) for example in subject.workload.examples),
        memory=memory,
        flops=flops,
        times=times,
        inference=inference_pass(subject) if timed else None,
        environment=environment(device.type, subject.workload.precision, subject.workload.accelerator.num_processes),
    )


def memory_pass(subject: Subject, follow: Recorder, *, evaluate: bool = True) -> Memory:
    """Bytes of the third step, and of a pass without gradients after it."""
    static = static_bytes(subject.workload.model, subject.before, subject.head)
    trained = [to_local(parameter) for parameter in subject.workload.model.parameters() if parameter.requires_grad]
    trained_bytes = sum(tensor.numel() * tensor.element_size() for tensor in trained)
    held: list[int] = []

    def look(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        held.append(tensor_bytes(value for state in optimizer.state.values() for value in _tensors(state)))

    def evaluation() -> None:
        follow.mark("rest")
        subject.workload.model.eval()
        subject.forward(subject.workload.model)
        follow.mark("evaluation")

    hook = register_optimizer_step_post_hook(look)
    try:
        with follow:
            subject.train(STEADY, mark=follow.mark, evaluate=evaluation if evaluate else lambda: None)
    finally:
        hook.remove()
    return memory_of(
        follow.marks(),
        static,
        optimizer=held[-1],
        gradients=trained_bytes,
        best_state=trained_bytes if subject.recipe.training.keep_best else None,
        reserved=follow.reserved,
        process_peak=process_peak() if evaluate else None,
    )


def flops_pass(subject: Subject) -> Flops:
    """Operations of one step for each of its tokens."""
    with FlopRecorder() as counter:
        subject.train(1, mark=counter.mark)
    return Flops(
        forward=counter.by_phase["forward"] / subject.tokens, backward=counter.by_phase["backward"] / subject.tokens
    )


def time_pass(subject: Subject, operations: float) -> Times:
    """Seconds of steps, by the loop's own clock. `operations` are those of one step."""
    device = subject.workload.accelerator.device
    start, worked = time.perf_counter(), time.process_time()
    steps = subject.train(WARMUP + TIMED).steps
    share = min(1.0, (time.process_time() - worked) / (time.perf_counter() - start))
    ends = [step.seconds for step in steps][WARMUP - 1 :]
    seconds = [end - start for start, end in itertools.pairwise(ends)]
    median = quantile(seconds, 0.5)
    rate = matrix_rate(device, getattr(torch, subject.workload.precision))
    return Times(
        steps=len(seconds),
        median=median,
        quartiles=(quantile(seconds, 0.25), quantile(seconds, 0.75)),
        tokens_per_second=subject.tokens / median,
        matrix_rate=rate,
        rate_share=operations / median / rate,
        # Of several threads some wait for others of their own, and nobody can tell.
        processor_share=share if device.type == "cpu" and torch.get_num_threads() == 1 else None,
    )


def inference_pass(subject: Subject) -> Inference:
    """Seconds of a forward pass as trained, without the method, and merged if that can be. Ends with it merged."""
    method, model = subject.recipe.method, subject.workload.model
    unmerged, outputs = _forward_seconds(subject, model)
    base = None
    try:
        without = method.disabled(model)
    except NotImplementedError:
        pass
    else:
        with without:
            base, _ = _forward_seconds(subject, model)
    merged = error = None
    if method.merges and not subject.recipe.quantization.quantizes:
        merged, after = _forward_seconds(subject, method.merge(model))
        error = max(float((one - other).abs().max()) for one, other in zip(outputs, after, strict=True))
    return Inference(unmerged=unmerged, merged=merged, base=base, merge_error=error)


def _forward_seconds(subject: Subject, model: nn.Module) -> tuple[float, list[Tensor]]:
    """The median of several, and the logits that came out."""
    model.eval()
    seconds = []
    for _ in range(WARMUP + TIMED):
        start = _now(subject.workload.accelerator.device)
        outputs = subject.forward(model)
        seconds.append(_now(subject.workload.accelerator.device) - start)
    found = [value.float() for name, value in outputs.items() if name.endswith("logits")]
    return quantile(seconds[WARMUP:], 0.5), found


def _tensors(state: Mapping[str, Any]) -> Iterator[Tensor]:
    yield from (value for value in state.values() if isinstance(value, Tensor))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
