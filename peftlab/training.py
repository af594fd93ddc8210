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
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from peftlab import signs
from peftlab.batching import Batch, epoch_batches, shares, split_batches
from peftlab.examples import Example
from peftlab.layer_decay import layer_rates
from peftlab.methods.method import Method
from peftlab.part import Diverged
from peftlab.perturbation import Perturbation
from peftlab.settings import Seeds, Training
from peftlab.signs import Signs
from peftlab.tasks.task import Task

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

Scores = dict[str, float]
Records = list[dict[str, Any]]  # one decoded prediction a row


@dataclass(frozen=True)
class Step:
    """One optimiser step."""

    number: int  # from 1
    epoch: float  # passes done
    loss: float  # nats a target, before the step
    learning_rate: float
    tokens: int  # without padding
    seconds: float  # of training since the start


@dataclass(frozen=True)
class Evaluation:
    """One look at the validation split."""

    step: int
    epoch: float
    loss: float  # training's mean since the last look, nats a target
    scores: Scores
    selectable: bool  # whether the method lets the state be kept


@dataclass
class TrainLog:
    """What happened in training."""

    steps: list[Step] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    best_step: int | None = None
    stopped_early: bool = False
    records: Records = field(default_factory=list)  # validation's, by the state that training ended with
    tokens: int = 0  # without padding, over all steps and processes
    padded_tokens: int = 0  # with padding
    unused: list[str] = field(default_factory=list)  # tensors of a base trained whole that no forward used: frozen
    seconds: float = 0.0  # of training alone: no loading, no evaluation


class Observer(Protocol):
    """Who wants to see a run while it goes."""

    def step(self, step: Step, total: int, log: TrainLog) -> None: ...
    def evaluation(self, evaluation: Evaluation, best: bool) -> None: ...


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
) -> TrainLog:
    """Train the parameters of `model` that require a gradient. `evaluate` scores the model on validation as it is."""
    lengths = [len(example) for example in examples]
    total = schedule_length(lengths, settings, seeds)
    groups = method.parameter_groups(model, learning_rate, settings.weight_decay)
    optimizer = torch.optim.AdamW(
        groups if settings.layer_decay is None else layer_rates(groups, model, settings.layer_decay),
        betas=settings.adam_betas,
        eps=settings.adam_epsilon,
        foreach=False,  # foreach makes a copy of all gradients at once
        fused=accelerator.device.type == "cuda",
    )
    # Not given to accelerator.prepare, which would step it once per process.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, total, settings))
    forward = accelerator.prepare_model(model) if accelerator.num_processes > 1 else model
    trainable = [p for p in model.parameters() if p.requires_grad]
    perturbation = Perturbation.of(model, settings, seeds)
    log = TrainLog()
    best: dict[str, torch.Tensor] | None = None
    alive: Signs | None = None
    torch.manual_seed(seeds.dropout + accelerator.process_index)
    model.train()
    for number, (epoch, batch, last) in enumerate(_batches(lengths, settings, seeds, total), start=1):
        start = _now(accelerator)
        parts = shares(batch, lengths, accelerator.num_processes * settings.accumulation)
        if accelerator.num_processes == 1:
            parts = [part for part in parts if part]
        micro_batches, own = [], []
        for part in parts[accelerator.process_index :: accelerator.num_processes]:
            # Each forward is a meeting of the processes: a share without examples borrows one and learns nothing.
            own.append(part or batch[:1])
            micro = task.collate([examples[i] for i in own[-1]], padding_token)
            micro_batches.append(_to(micro if part else task.without_targets(micro), accelerator.device))
        counts = torch.stack([task.targets(micro) for micro in micro_batches]).sum()
        targets = max(1, int(accelerator.reduce(counts, reduction="sum")))
        loss = torch.zeros((), device=accelerator.device)
        for position, (part, micro) in enumerate(zip(own, micro_batches, strict=True)):
            for turn, disturbed in enumerate(perturbation.passes(micro, part, number), start=1):
                last_one = position + 1 == len(micro_batches) and turn == perturbation.turns
                with disturbed, contextlib.nullcontext() if last_one else accelerator.no_sync(forward):
                    with autocast():
                        outputs = forward(**task.inputs(micro, model))
                        share = task.loss(outputs, micro) / targets
                    # DDP averages over processes, the step's loss is a sum over them.
                    (share * accelerator.num_processes).backward()
                if turn == 1:
                    loss += share.detach()
        penalty = method.penalty(model)
        if penalty is not None:
            with accelerator.no_sync(forward):  # every process has the whole of it already
                penalty.backward()
        if alive is None or (log.evaluations and number == log.evaluations[0].step + 1):
            alive = signs.check(model, number, alive, whole_base=method.trains_whole_base)
        if settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(trainable, settings.clip)
        rate = float(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        method.after_step(model, number)
        optimizer.zero_grad()
        value = float(accelerator.reduce(loss, reduction="sum"))
        log.seconds += _now(accelerator) - start
        tokens = sum(lengths[i] for i in batch)
        log.tokens += tokens
        log.padded_tokens += sum(len(part) * max(lengths[i] for i in part) for part in parts if part)
        log.steps.append(Step(number, epoch, value, rate, tokens, log.seconds))
        observer.step(log.steps[-1], total, log)
        if not math.isfinite(value):
            raise Diverged(
                f"the loss is {value} at step {number} (examples {batch[:8]} ...); lower training.learning_rate"
            )
        if number == total or (number % settings.evaluate_every == 0 if settings.evaluate_every else last):
            if not log.evaluations:
                signs.check_moved(model, alive, number)
            best = _evaluate(model, method, task, evaluate, observer, log, total, best if settings.keep_best else None)
            if settings.patience is not None and _stale(log) >= settings.patience:
                log.stopped_early = number < total
                break
    log.unused = _freeze_unused(model, optimizer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if best is not None and name in best:
                parameter.copy_(best[name])
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
        # Whole batches go round the processes, so that each example meets the same neighbours on any number of them.
        for batch in batches[accelerator.process_index :: accelerator.num_processes]:
            chosen = [examples[i] for i in batch]
            inputs = _to(task.collate(chosen, tokenizer.pad_token_id), accelerator.device)
            outputs = task.predict(model, inputs, tokenizer)
            found += zip(batch, task.decode(outputs, chosen), strict=True)
    model.train(was_training)
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        found = gather_object(found)
    return task.merge([record for _, record in sorted(found, key=lambda pair: pair[0])], examples)


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


def _to(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def _evaluate(
    model: torch.nn.Module,
    method: Method,
    task: Task,
    evaluate: Callable[[], tuple[Scores, Records]],
    observer: Observer,
    log: TrainLog,
    total: int,
    best: dict[str, torch.Tensor] | None,
) -> dict[str, torch.Tensor]:
    """Score the model; return a copy of its trained parameters if it is the best so far, else `best`."""
    generators = torch.get_rng_state()
    scores, records = evaluate()
    torch.set_rng_state(generators)  # evaluation changes nothing
    model.train()
    step = log.steps[-1]
    since = log.evaluations[-1].step if log.evaluations else 0
    loss = sum(past.loss for past in log.steps[since:]) / (step.number - since)
    before = max((task.rank(past.scores) for past in log.evaluations if past.selectable), default=-math.inf)
    selectable = method.selectable(step.number, total)
    log.evaluations.append(Evaluation(step.number, step.epoch, loss, scores, selectable))
    better = selectable and task.rank(scores) > before
    observer.evaluation(log.evaluations[-1], better)
    if better:
        log.best_step = step.number
    elif best is not None:
        return best
    log.records = records
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def _freeze_unused(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Of the optimiser's parameters, those that never had a gradient, and so have no moments."""
    own = {id(p) for group in optimizer.param_groups for p in group["params"] if p not in optimizer.state}
    names = [name for name, p in model.named_parameters() if id(p) in own]
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return names


def _stale(log: TrainLog) -> int:
    """How many evaluations have passed since the best one."""
    return sum(look.selectable and look.step > (log.best_step or 0) for look in log.evaluations)


def _now(accelerator: Accelerator) -> float:
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize(accelerator.device)
    return time.perf_counter()
