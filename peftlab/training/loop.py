"""The training loop, on Accelerate: it owns its arithmetic and its clock.

The loss of an optimiser step is the mean over all target tokens of the step, however they fall into micro-batches and
processes: a batch trained in one piece, in four, or by two processes gives the same update.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from peftlab.component import Precision
from peftlab.data.examples import Example
from peftlab.distributed import dispatch, fsdp
from peftlab.distributed.deepspeed import ZeroSettings
from peftlab.distributed.optimizer_step import OptimizerStep
from peftlab.errors import DivergedError, OutOfMemoryError
from peftlab.methods.method import Method
from peftlab.tasks.task import Task
from peftlab.training import gradient_checks, out_of_memory
from peftlab.training.batching import Batch, epoch_batches, split_batches
from peftlab.training.gradients import Gradients, Phase, broke_for_memory, to_device
from peftlab.training.interruption import Interrupted, asked
from peftlab.training.layer_decay import layer_rates
from peftlab.training.perturbation import Perturbation
from peftlab.training.settings import Seeds, Training
from peftlab.training.state import Callback, RngState, Snapshot, TrainState
from peftlab.training.train_log import Evaluation, MicroBatchReduction, Observer, Records, Scores, Step, TrainLog

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase


def schedule_length(lengths: Sequence[int], settings: Training, seeds: Seeds) -> int:
    """How many optimiser steps `train` will take if it does not stop early."""
    if settings.steps is not None:
        return settings.steps
    whole, part = divmod(settings.passes, 1)
    counts = [len(_epoch(lengths, settings, seeds, epoch)) for epoch in range(math.ceil(settings.passes))]
    return max(1, sum(counts[: int(whole)]) + (round(part * counts[-1]) if part else 0))


def learning_rate_factor(step: int, total: int, settings: Training) -> float:
    """What the learning rate is multiplied by at 0-based `step`: linear warm-up, then the schedule down to 0.

    >>> [round(learning_rate_factor(step, 10, Training(warmup=0.2)), 3) for step in (0, 1, 2, 9)]
    [0.5, 1.0, 1.0, 0.125]
    """
    warmup = round(settings.warmup * total)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    if settings.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done if settings.schedule == "linear" else 1.0


def train(
    model: torch.nn.Module,
    *,
    method: Method,
    task: Task,
    examples: Sequence[Example],
    padding_token: int,
    settings: Training,
    learning_rate: float,
    seeds: Seeds,
    accelerator: Accelerator,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]],
    evaluate: Callable[[], tuple[Scores, Records]],
    observer: Observer,
    keeper: Callback | None = None,
    resumed: Snapshot | None = None,
    mark: Callable[[Phase], object] = lambda phase: None,
    zero: ZeroSettings | None = None,
    precision: Precision = "float32",
) -> TrainLog:
    """Train the parameters of `model` that require a gradient. `evaluate` scores the model on validation as it is.

    Goes on from `resumed` to the same end. `mark` is called at the end of each phase of each step: what is measured of
    a step is measured there. Raises DivergedError, OutOfMemoryError, or Interrupted if a signal comes.
    """
    lengths = [len(example) for example in examples]
    total = schedule_length(lengths, settings, seeds)
    groups = [g for g in method.parameter_groups(model, learning_rate, settings.weight_decay) if g["params"]]
    optimizer = torch.optim.AdamW(
        groups if settings.layer_decay is None else layer_rates(groups, model, settings.layer_decay),
        betas=settings.adam_betas,
        eps=settings.adam_epsilon,
        foreach=False,  # foreach makes a copy of all gradients at once
        fused=accelerator.device.type == "cuda",
    )
    # Not given to accelerator.prepare, which would step it once per process.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, total, settings))
    keeper = keeper or Callback()
    if zero is None:
        update = OptimizerStep(model, optimizer, accelerator, clip=settings.clip)
    else:
        update = zero.make_optimizer_step(model, optimizer, accelerator, clip=settings.clip, precision=precision)
    progress = TrainState(model, method, update, schedule, accelerator, settings.accumulation)
    torch.manual_seed(seeds.dropout + accelerator.process_index)
    if resumed is not None:
        progress.restore(resumed)
    log = progress.log
    keeper.watch(progress)
    perturbation = Perturbation.of(model, settings, seeds)
    gradients = Gradients(
        update, model, method, task, examples, lengths, padding_token, accelerator, autocast, perturbation, mark
    )
    model.train()
    places = dispatch.devices(model)
    batches = enumerate(_batches(lengths, settings, seeds, total), start=1)
    # Resumed, it looks once more at the last step done: the evaluation after it may be still to come.
    for number, (epoch, batch, last) in itertools.islice(batches, max(0, len(log.steps) - 1), None):
        if log.stopped_early:
            break
        stop = False
        if number > len(log.steps):
            start, before = _now(places), RngState.now(model)
            loss = _add_gradients(gradients, batch, progress, settings, observer, keeper, before)
            wanted = keeper.wanted(number)
            meeting = accelerator.reduce(torch.stack([loss, *loss.new_tensor(wanted)]), reduction="sum").tolist()
            value, due, stop = float(meeting[0]), meeting[1] > 0, meeting[2] > 0
            first_after = bool(log.evaluations) and number == log.evaluations[0].step + 1
            if progress.alive is None or first_after:
                progress.alive = gradient_checks.require_gradients(
                    model,
                    number,
                    progress.alive,
                    loss=value,
                    whole_base=method.may_train_unused,
                    gradient=update.gradient,
                )
            norm = update.step() if math.isfinite(value) else math.nan
            if not (math.isfinite(value) and math.isfinite(norm)):
                raise DivergedError(_diverged(value, norm, number, [examples[i] for i in batch], keeper.keep(before)))
            rate = float(schedule.get_last_lr()[0])
            schedule.step()
            method.after_step(model, number)
            update.zero_grad()
            mark("optimizer")
            log.seconds += _now(places) - start
            tokens = gradients.tokens(batch)
            log.tokens += tokens
            log.padded_tokens += gradients.positions(batch, progress.accumulation)
            log.steps.append(Step(number, epoch, value, rate, tokens, log.seconds))
            observer.step(log.steps[-1], total, log)
            if stop:
                keeper.stop()
            if due:
                keeper.keep()
        if number == total or (number % settings.evaluate_every == 0 if settings.evaluate_every else last):
            if not log.evaluations or log.evaluations[-1].step < number:
                if not log.evaluations and progress.alive is not None:
                    gradient_checks.require_updates(
                        model, progress.alive, number, loss=max(past.loss for past in log.steps)
                    )
                _evaluate(progress, task, evaluate, observer, keeper, total, keep_best=settings.keep_best)
            if settings.patience is not None and _stale(log) >= settings.patience:
                log.stopped_early = number < total
    log.unused = _freeze(model, update.unused())
    fsdp.reshard(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if progress.best is not None and name in progress.best:
                fsdp.local_shard(parameter).copy_(progress.best[name])
    model.eval()
    return log


def predict(
    model: torch.nn.Module,
    *,
    task: Task,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    batch_tokens: int,
    accelerator: Accelerator,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]],
) -> Records:
    """A decoded record for each row, in order, the same on every process and for any number of them."""
    lengths = [len(example) for example in examples]
    order = sorted(range(len(examples)), key=lambda i: lengths[i])
    batches = split_batches(order, lengths, tokens=batch_tokens)
    found: list[tuple[int, dict[str, Any]]] = []
    was_training = model.training
    model.eval()
    # Not inference_mode: bitsandbytes keeps tensors it makes here, and training must be able to use them.
    with torch.no_grad(), autocast():
        for batch, counts in _turns(batches, task.generates(examples), model, accelerator):
            if _told_to_stop(model, accelerator):
                break
            chosen = [examples[i] for i in batch]
            inputs = to_device(task.collate(chosen, tokenizer.pad_token_id), accelerator.device)
            outputs = task.predict(model, inputs, tokenizer)
            if counts:
                found += zip(batch, task.decode(outputs, chosen), strict=True)
    fsdp.reshard(model)
    model.train(was_training)
    stop = asked()
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        found = gather_object(found)
        stop = max((number for number in gather_object([stop]) if number is not None), default=None)
    if stop is not None:
        raise Interrupted(stop)
    return task.merge([record for _, record in sorted(found, key=lambda pair: pair[0])], examples)


def _turns(
    batches: Sequence[Batch], generates: bool, model: torch.nn.Module, accelerator: Accelerator
) -> Iterator[tuple[Batch, bool]]:
    """What this process predicts, and whether it counts: whole batches, so that no example's neighbours change."""
    rank, processes = accelerator.process_index, accelerator.num_processes
    if not fsdp.is_sharded(model):
        yield from ((batch, True) for batch in batches[rank::processes])
    elif generates:  # a text takes as many forwards as it has tokens: they go through all of them side by side
        yield from ((batch, rank == 0) for batch in batches)
    else:  # a process that has none left borrows one
        for first in range(0, len(batches), processes):
            own = first + rank
            yield (batches[own], True) if own < len(batches) else (batches[0], False)


def _told_to_stop(model: torch.nn.Module, accelerator: Accelerator) -> bool:
    """This process, or where they must go on side by side, one of them."""
    if not fsdp.is_sharded(model):
        return asked() is not None
    told = torch.tensor(float(asked() is not None), device=accelerator.device)
    return bool(accelerator.reduce(told, reduction="sum"))


def _epoch(lengths: Sequence[int], settings: Training, seeds: Seeds, epoch: int) -> list[Batch]:
    return epoch_batches(lengths, seed=seeds.data_order, epoch=epoch, **settings.batch)


def _batches(
    lengths: Sequence[int], settings: Training, seeds: Seeds, total: int
) -> Iterator[tuple[float, Batch, bool]]:
    """`total` times: passes done after this batch, the batch, whether it is its epoch's last."""
    done = 0
    for epoch in itertools.count():
        batches = _epoch(lengths, settings, seeds, epoch)
        for position, batch in enumerate(batches, start=1):
            yield epoch + position / len(batches), batch, position == len(batches)
            done += 1
            if done == total:
                return


def _add_gradients(
    gradients: Gradients,
    batch: Batch,
    progress: TrainState,
    settings: Training,
    observer: Observer,
    keeper: Callback,
    before: RngState,
) -> torch.Tensor:
    """This process's share of the step's loss. Where memory runs out, again in smaller pieces if the recipe asks."""
    step, alone = len(progress.log.steps) + 1, progress.accelerator.num_processes == 1
    while True:
        loss = broke_for_memory(lambda: gradients.add(batch, progress.accumulation, step))
        if not isinstance(loss, str):
            return loss
        gradients.zero_grad()
        before.restore()
        if not (alone and settings.auto_micro_batch and progress.accumulation < len(batch)):
            kept = keeper.keep(before) if alone else ""  # the others do not come to a meeting
            raise OutOfMemoryError(_no_memory(loss, gradients, batch, progress, step, kept))
        progress.accumulation *= 2
        progress.log.halvings.append(MicroBatchReduction(step, progress.accumulation))
        observer.halving(progress.log.halvings[-1])


def _evaluate(
    progress: TrainState,
    task: Task,
    evaluate: Callable[[], tuple[Scores, Records]],
    observer: Observer,
    keeper: Callback,
    total: int,
    *,
    keep_best: bool,
) -> None:
    """Score the model; keep its records, and a copy of its trained parameters, if it is the best so far."""
    log, model = progress.log, progress.model
    generators = RngState.now(model)
    try:
        scores, records = evaluate()
    except Interrupted:
        generators.restore()
        keeper.stop()
        raise
    generators.restore()  # evaluation changes nothing
    model.train()
    step = log.steps[-1]
    since = log.evaluations[-1].step if log.evaluations else 0
    loss = sum(past.loss for past in log.steps[since:]) / (step.number - since)
    before = max((task.rank(past.scores) for past in log.evaluations if past.selectable), default=-math.inf)
    selectable = progress.method.selectable(step.number, total)
    log.evaluations.append(Evaluation(step.number, step.epoch, loss, scores, selectable))
    better = selectable and task.rank(scores) > before
    observer.evaluation(log.evaluations[-1], better)
    if better:
        log.best_step = step.number
    if better or not keep_best or progress.best is None:
        log.records = records
        if keep_best:  # else the state in which training ends is the one
            progress.best = {name: fsdp.local_shard(p).clone() for name, p in progress.trained.items()}


def _freeze(model: torch.nn.Module, parameters: Sequence[torch.nn.Parameter]) -> list[str]:
    """Their names."""
    own = {id(parameter) for parameter in parameters}
    names = [name for name, p in model.named_parameters() if id(p) in own]
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return names


def _stale(log: TrainLog) -> int:
    """How many evaluations have passed since the best one."""
    return sum(look.selectable and look.step > (log.best_step or 0) for look in log.evaluations)


def _now(places: Sequence[torch.device]) -> float:
    for device in places:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return time.perf_counter()


def _diverged(loss: float, norm: float, step: int, examples: Sequence[Example], kept: str) -> str:
    what = f"the gradient's norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
    some = ", ".join(example.row.where for example in examples[:8]) + (", ..." if len(examples) > 8 else "")
    return f"{what} at step {step} (examples {some}); {kept}lower training.learning_rate"


def _no_memory(wanted: str, gradients: Gradients, batch: Batch, progress: TrainState, step: int, kept: str) -> str:
    largest, device = gradients.largest(batch, progress.accumulation), progress.accelerator.device
    cure = "set training.auto_micro_batch: true, or a larger training.accumulation (the same update)"
    if progress.accumulation >= len(batch):
        cure = (
            "a micro-batch is one example already: set a smaller task.max_length, quantization: nf4, or a smaller base"
        )
    return (
        f"out of memory at step {step}, in micro-batches of up to {largest} (accumulation {progress.accumulation}): "
        f"{wanted}; {out_of_memory.limits(device)}; {kept}{cure}"
    )
