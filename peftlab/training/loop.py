"""The training loop, on Accelerate: it owns its arithmetic and its clock.

The loss of an optimizer step is the mean over all target tokens of the step, however they are split into micro-batches
and processes: a batch trained in one piece, in four, or by two processes gives the same update.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Sequence

import torch

from peftlab.data.examples import Example
from peftlab.distributed import dispatch, fsdp
from peftlab.distributed.optimizer_step import OptimizerStep
from peftlab.errors import DivergedError, OutOfMemoryError
from peftlab.optimizers.optimizer import OptimizerPlan
from peftlab.training import gradient_checks, out_of_memory
from peftlab.training.adversarial import ForwardPasses
from peftlab.training.batching import Batch
from peftlab.training.callbacks import Callback, CallbackList
from peftlab.training.gradients import Gradients, catch_out_of_memory
from peftlab.training.interruption import Interrupted
from peftlab.training.layer_decay import layer_rates
from peftlab.training.schedule import ScheduledBatch, learning_rate_factor, schedule_length, scheduled_batches
from peftlab.training.state import RngState, TrainState
from peftlab.training.train_log import Evaluation, MicroBatchReduction, Records, Scores, Step, TrainLog, Validation
from peftlab.training.workload import Workload


def train(workload: Workload, callbacks: Sequence[Callback] = ()) -> TrainLog:
    """Train the parameters of the workload's model that require a gradient.

    The model ends in evaluation mode, with `keep_best` in the state that scored best. A callback may restore a snapshot
    at the start; training then continues to the same end, bit for bit. Raises DivergedError, OutOfMemoryError,
    UserError if a trainable tensor gets no gradient, or what a callback raises, e.g. Interrupted.
    """
    return _Loop(workload, CallbackList(callbacks)).run()


class _Loop:
    """One training."""

    def __init__(self, workload: Workload, callbacks: CallbackList) -> None:
        settings, accelerator = workload.settings, workload.accelerator
        self.workload = workload
        self.callbacks = callbacks
        self.total = schedule_length(workload.lengths, settings, workload.seeds)
        optimizer = _optimizer(workload)
        # Not passed to accelerator.prepare, which would step it once per process.
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, self.total, settings)
        )
        self.optimizer_step = _optimizer_step(workload, optimizer)
        self.state = TrainState(workload, self.optimizer_step, schedule)
        torch.manual_seed(workload.seeds.dropout + accelerator.process_index)
        callbacks.on_train_begin(self.state)
        passes = ForwardPasses.of(workload.model, settings, workload.seeds)
        self.gradients = Gradients(workload, self.optimizer_step, passes, callbacks)
        self.devices = dispatch.devices(workload.model)

    def run(self) -> TrainLog:
        workload, state = self.workload, self.state
        settings, model = workload.settings, workload.model
        model.train()
        batches = scheduled_batches(workload.lengths, settings, workload.seeds, self.total)
        # A resumed run sees the last step done once more: the evaluation after it may be still to come.
        for batch in itertools.islice(batches, max(0, len(state.log.steps) - 1), None):
            if state.log.stopped_early:
                break
            if batch.step > len(state.log.steps):
                self._step(batch)
            every = settings.evaluate_every
            if batch.step == self.total or (batch.step % every == 0 if every else batch.ends_epoch):
                self._evaluate_once(batch.step)
        state.log.unused = _freeze(model, self.optimizer_step.unused())
        settings.optimizer.finish(self.optimizer_step.optimizer)
        fsdp.reshard(model)
        state.load_best()
        model.eval()
        self.callbacks.on_train_end(state.log)
        return state.log

    def _step(self, batch: ScheduledBatch) -> None:
        """Take one optimizer step."""
        workload, state, log = self.workload, self.state, self.state.log
        start, rng = _now(self.devices), RngState.capture(workload.model)
        loss = self._add_gradients(batch.examples, rng)
        request = self.callbacks.request(batch.step)
        # One collective call for the loss and for what the callbacks of any process request.
        sums = workload.accelerator.reduce(torch.stack([loss, *loss.new_tensor(request)]), reduction="sum").tolist()
        value, save, stop = float(sums[0]), sums[1] > 0, sums[2] > 0
        self.callbacks.on_gradients(state)
        self._check_gradients(batch.step, value)
        norm = self.optimizer_step.step() if math.isfinite(value) else math.nan
        if not (math.isfinite(value) and math.isfinite(norm)):
            examples = [workload.examples[i] for i in batch.examples]
            raise DivergedError(_diverged_message(value, norm, batch.step, examples, self.callbacks.on_save(rng)))
        learning_rate = float(state.schedule.get_last_lr()[0])
        state.schedule.step()
        workload.method.after_step(workload.model, batch.step)
        self.optimizer_step.zero_grad()
        self.callbacks.on_phase_end("optimizer")
        log.seconds += _now(self.devices) - start
        tokens = self.gradients.tokens(batch.examples)
        log.tokens += tokens
        log.padded_tokens += self.gradients.padded_tokens(batch.examples, state.accumulation)
        log.steps.append(Step(batch.step, batch.epoch, value, learning_rate, tokens, log.seconds))
        self.callbacks.on_step_end(log.steps[-1], self.total, log)
        if stop:
            self.callbacks.on_interrupt()
        if save:
            self.callbacks.on_save()

    def _add_gradients(self, batch: Batch, rng: RngState) -> torch.Tensor:
        """Run the step's forward and backward passes; return this process's part of the loss.

        Out of memory, it retries in micro-batches of half the size if `auto_micro_batch` is set. `rng` is the state at
        the start of the step.
        """
        state, step = self.state, len(self.state.log.steps) + 1
        alone = self.workload.accelerator.num_processes == 1
        while True:
            loss = catch_out_of_memory(lambda: self.gradients.add(batch, state.accumulation, step))
            if not isinstance(loss, str):
                return loss
            self.gradients.zero_grad()
            rng.restore()
            if not (alone and self.workload.settings.auto_micro_batch and state.accumulation < len(batch)):
                saved = self.callbacks.on_save(rng) if alone else ""  # other processes would not join the collective
                raise OutOfMemoryError(_out_of_memory_message(loss, self.gradients, batch, state, saved))
            state.accumulation *= 2
            state.log.micro_batch_reductions.append(MicroBatchReduction(step, state.accumulation))
            self.callbacks.on_micro_batch_reduction(state.log.micro_batch_reductions[-1])

    def _check_gradients(self, step: int, loss: float) -> None:
        """Require a gradient for each trainable tensor, at the first step and at the first one after an evaluation."""
        workload, state = self.workload, self.state
        evaluations = state.log.evaluations
        after_evaluation = bool(evaluations) and step == evaluations[0].step + 1
        if workload.check_gradients and (state.gradient_stats is None or after_evaluation):
            state.gradient_stats = gradient_checks.require_gradients(
                workload.model,
                step,
                state.gradient_stats,
                loss=loss,
                may_train_unused=workload.method.may_train_unused,
                may_be_idle=workload.method.may_be_idle,
                gradient=self.optimizer_step.gradient,
            )

    def _evaluate_once(self, step: int) -> None:
        """Evaluate after this step, unless that was done before the run was resumed, and apply `patience`."""
        workload, log = self.workload, self.state.log
        if not log.evaluations or log.evaluations[-1].step < step:
            if not log.evaluations and self.state.gradient_stats is not None:
                largest_loss = max(past.loss for past in log.steps)
                gradient_checks.require_updates(workload.model, self.state.gradient_stats, step, loss=largest_loss)
            self._evaluate()
        if workload.settings.patience is not None and _evaluations_since_best(log) >= workload.settings.patience:
            log.stopped_early = step < self.total

    def _evaluate(self) -> None:
        """Score the model. If it is the best so far, keep its records and a copy of its trained parameters."""
        workload = self.workload
        rng = RngState.capture(workload.model)
        with contextlib.ExitStack() as evaluation:
            optimizer = workload.settings.optimizer
            evaluation.enter_context(optimizer.evaluation_weights(self.optimizer_step.optimizer))
            try:
                validation = Validation(*workload.evaluate())
            except Interrupted:
                rng.restore()
                evaluation.close()
                self.callbacks.on_interrupt()
                raise
            rng.restore()  # an evaluation does not change what training draws
            workload.model.train()
            self._log_evaluation(*validation)

    def _log_evaluation(self, scores: Scores, records: Records, validation_loss: float | None) -> None:
        workload, state, log = self.workload, self.state, self.state.log
        task, step = workload.task, log.steps[-1]
        last = log.evaluations[-1].step if log.evaluations else 0
        loss = sum(past.loss for past in log.steps[last:]) / (step.number - last)
        best_rank = max((task.rank(past.scores) for past in log.evaluations if past.selectable), default=-math.inf)
        selectable = workload.method.selectable(step.number, self.total)
        log.evaluations.append(Evaluation(step.number, step.epoch, loss, scores, selectable, validation_loss))
        is_best = selectable and task.rank(scores) > best_rank
        self.callbacks.on_evaluation(log.evaluations[-1], is_best)
        if is_best:
            log.best_step = step.number
        keep_best = workload.settings.keep_best
        if is_best or not keep_best or state.best is None:
            log.records = records
            if keep_best:  # otherwise the model ends in the state of the last step
                state.best = {name: fsdp.local_shard(p).clone() for name, p in state.trained.items()}


def _optimizer(workload: Workload) -> torch.optim.Optimizer:
    settings, model = workload.settings, workload.model
    groups = workload.method.parameter_groups(model, workload.learning_rate, settings.weight_decay)
    groups = [group for group in groups if group["params"]]
    return settings.optimizer.make(
        OptimizerPlan(
            model=model,
            groups=groups if settings.layer_decay is None else layer_rates(groups, model, settings.layer_decay),
            betas=settings.adam_betas,
            epsilon=settings.adam_epsilon,
            device=workload.accelerator.device,
        )
    )


def _optimizer_step(workload: Workload, optimizer: torch.optim.Optimizer) -> OptimizerStep:
    model, accelerator, clip = workload.model, workload.accelerator, workload.settings.clip
    if workload.zero is None:
        return OptimizerStep(model, optimizer, accelerator, clip=clip)
    return workload.zero.make_optimizer_step(model, optimizer, accelerator, clip=clip, precision=workload.precision)


def _freeze(model: torch.nn.Module, parameters: Sequence[torch.nn.Parameter]) -> list[str]:
    """Freeze these parameters of the model; return their names."""
    ids = {id(parameter) for parameter in parameters}
    names = [name for name, p in model.named_parameters() if id(p) in ids]
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return names


def _evaluations_since_best(log: TrainLog) -> int:
    return sum(past.selectable and past.step > (log.best_step or 0) for past in log.evaluations)


def _now(devices: Sequence[torch.device]) -> float:
    """Seconds of a clock, read when the devices have done their work."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return time.perf_counter()


def _diverged_message(loss: float, norm: float, step: int, examples: Sequence[Example], saved: str) -> str:
    what = f"the gradient's norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
    rows = ", ".join(example.row.where for example in examples[:8]) + (", ..." if len(examples) > 8 else "")
    return f"{what} at step {step} (examples {rows}); {saved}lower training.learning_rate"


def _out_of_memory_message(requested: str, gradients: Gradients, batch: Batch, state: TrainState, saved: str) -> str:
    largest = gradients.largest_micro_batch(batch, state.accumulation)
    cure = "set training.auto_micro_batch: true, or a larger training.accumulation (the same update)"
    if state.accumulation >= len(batch):
        cure = (
            "a micro-batch is one example already: set a smaller task.max_length, quantization: nf4, or a smaller base"
        )
    return (
        f"out of memory at step {len(state.log.steps) + 1}, in micro-batches of up to {largest} "
        f"(accumulation {state.accumulation}): {requested}; "
        f"{out_of_memory.limits(state.workload.accelerator.device)}; {saved}{cure}"
    )
