"""Checks of a probe run: training reaches every trainable tensor and nothing else, repeats, resumes and reloads."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from peftlab.doctor.probe import LIBRARY_ERRORS, STEPS, ProbeModel, ProbeRun, copies_of_trainable, first_line
from peftlab.loading.attach import apply_method
from peftlab.quantization.none import NoQuantization
from peftlab.training.callbacks import Callback
from peftlab.training.gradient_checks import GradientStats
from peftlab.training.loop import train
from peftlab.training.settings import Training
from peftlab.training.state import Snapshot, TrainState
from peftlab.training.train_log import Step, TrainLog


@dataclass(frozen=True)
class Check:
    """One line of the doctor's list."""

    name: str
    ok: bool | None  # None: does not apply
    detail: str
    cure: str = ""


def guarded(name: str, check: Callable[[], Check]) -> Check:
    """The check's result, or a failed check if it raised an error of a library."""
    try:
        return check()
    except LIBRARY_ERRORS as error:
        return Check(name, False, error_text(error), "this combination does not support it; choose another")


def check_gradients(run: ProbeRun) -> Check:
    """Every trainable tensor gets a gradient in the first step, and one that is not all zero within a few."""
    cure = "the method does not reach the loss in this base; choose other targets"
    return _check_stats("gradients", run.before, cure, unused(run))


def check_only_the_method(run: ProbeRun) -> Check:
    """No tensor of the frozen base requires a gradient."""
    name = "only method and head train"
    if run.probe.method.trains_base:
        return Check(name, None, "the method trains the base's own weights")
    if not run.unexpected_trainable:
        return Check(name, True, f"{run.before[0].count} trainable tensors")
    return Check(name, False, f"{', '.join(run.unexpected_trainable[:3])} of the base would train", "freeze the base")


def check_base_unchanged(run: ProbeRun) -> Check:
    """The frozen tensors are bit-identical after training and evaluation."""
    name = "base unchanged"
    changed = [tensor for tensor, (now, then) in run.frozen.items() if not torch.equal(now, then)]
    if not changed:
        return Check(name, True, f"{len(run.frozen)} frozen tensors are bit-identical after {STEPS} steps")
    cure = "something writes into the frozen base; do not train this combination"
    return Check(name, False, f"{len(changed)} frozen tensors changed: {', '.join(changed[:3])}", cure)


def check_after_evaluation(run: ProbeRun) -> Check:
    """Training continues after an evaluation: every trainable tensor has a gradient and changes."""
    name = "trains after evaluation"
    cure = "an evaluation ends training here: set quantization: none, or another precision"
    if run.error is not None:
        return Check(name, False, error_text(run.error), cure)
    alive = _check_stats(name, run.after, cure, unused(run))
    if not alive.ok:
        return alive
    start, now = run.evaluated, dict(run.model.named_parameters())
    used = start.keys() - unused(run)
    unchanged = [tensor for tensor in start if tensor in used and torch.equal(start[tensor], now[tensor])]
    if not unchanged:
        return alive
    cure = "the optimizer does not have them, or training.learning_rate is too small for their dtype"
    return Check(
        name, False, f"{len(unchanged)} of {len(used)} tensors do not change: {', '.join(unchanged[:3])}", cure
    )


class KeepGradients(Callback):
    """Trains to a step of interest, from a snapshot if one is given, and keeps that step's gradients."""

    def __init__(self, step: int, snapshot: Snapshot | None = None) -> None:
        self.step = step
        self.snapshot = snapshot  # of the state before the step
        self.gradients: dict[str, Tensor | None] = {}

    def on_train_begin(self, state: TrainState) -> None:
        if self.snapshot is not None:
            state.restore(self.snapshot)
        self._state = state

    def on_gradients(self, state: TrainState) -> None:
        if len(state.log.steps) + 1 == self.step:
            for name, parameter in state.trained.items():
                gradient = state.optimizer_step.gradient(parameter)
                self.gradients[name] = None if gradient is None else gradient.detach().clone()

    def on_step_end(self, step: Step, total: int, log: TrainLog) -> None:
        if step.number + 1 == self.step:
            self.snapshot = stored(self._state.snapshot())


def check_checkpointing(run: ProbeRun) -> Check:
    """Gradient checkpointing gives the gradients that training without it gives, or is refused."""
    name, step = "checkpointing on = off", 3  # away from the start, where many gradients are zero
    snapshot: Snapshot | None = None
    gradients = {}
    for on in (False, True):
        training = run.probe.recipe.training.model_copy(update={"gradient_checkpointing": on})
        recipe = run.probe.recipe.model_copy(update={"training": training})
        probe = dataclasses.replace(run.probe, recipe=recipe)
        reason = recipe.incompatible_with(run.base.model.config.model_type)
        if reason is not None:
            return Check(name, None, f"refused: {reason}")
        base = probe.base()
        if on and not base.model.supports_gradient_checkpointing:
            return Check(name, None, f"{base.model.config.model_type} does not support it")
        model = apply_method(recipe, base, probe.plan(base))
        callback = KeepGradients(step, snapshot)  # both from the same weights, so that only the step is compared
        train(probe.workload(model, steps=step), [callback])
        gradients[on], snapshot = callback.gradients, callback.snapshot
    lost = [tensor for tensor, grad in gradients[True].items() if grad is None and gradients[False][tensor] is not None]
    if lost:
        detail = f"with it {len(lost)} tensors get no gradient: {', '.join(lost[:3])}"
        return Check(name, False, detail, _WITHOUT_CHECKPOINTING)
    away = distance(_flat(gradients[True]), _flat(gradients[False]))
    ok = away <= {"float32": 1e-5, "bfloat16": 1e-2}[run.probe.precision]
    detail = "bit-identical gradients" if away == 0 else f"gradients differ by {away:.1e} of their largest value"
    return Check(name, ok, detail, "" if ok else _WITHOUT_CHECKPOINTING)


_WITHOUT_CHECKPOINTING = "set training.gradient_checkpointing: false"


def check_accumulation(run: ProbeRun) -> Check:
    """A step in four micro-batches gives the update of a step in one."""
    name = "accumulation 4x1 = 1x4"
    one, four = (_update(run.probe, accumulation) for accumulation in (1, 4))
    away = distance(four, one)
    ok = away <= {"float32": 1e-3, "bfloat16": 0.1}[run.probe.precision]
    detail = f"updates differ by {away:.1e} of their largest value"
    if ok:
        return Check(name, True, detail)
    active = [name for name, module in run.model.named_modules() if isinstance(module, nn.Dropout) and module.p > 0]
    if active:
        return Check(name, False, detail, f"a dropout that no setting reaches: {active[0]}")
    return Check(name, False, detail, "set training.accumulation: 1")


def check_reload(run: ProbeRun) -> Check:
    """The saved files give the logits of the model that was saved."""
    probe = run.probe
    with tempfile.TemporaryDirectory() as folder:
        probe.method.save(run.model, Path(folder))
        size = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
        loaded = probe.method.load(probe.base().model, Path(folder))
    loaded.to(probe.device)
    logits = probe.logits(run.model)
    away = float((probe.logits(loaded) - logits).abs().max())
    ok = away <= 1e-5
    exact = "bit-identical logits" if away == 0 else f"logits {away:.1e} from those saved"
    cure = "" if ok else "do not rely on this combination's saved files"
    return Check("save and reload", ok, f"{exact}, {size:,} bytes", cure)


def check_merge(run: ProbeRun) -> Check:
    """Merging keeps the logits, in float32 on the base without quantization.

    Over a quantized base the distance to the model as trained is reported, not checked.
    """
    probe, name = run.probe, "merge"
    if not probe.method.merges:
        return Check(name, None, "the method computes next to the base and cannot be merged into it")
    recipe = probe.recipe.model_copy(update={"quantization": NoQuantization()})
    exact = dataclasses.replace(probe, recipe=recipe, precision="float32")
    with tempfile.TemporaryDirectory() as folder:
        probe.method.save(run.model, Path(folder))
        model = probe.method.load(exact.base().model, Path(folder))
    model.to(probe.device)
    before = exact.logits(model)
    merged = probe.method.merge(model)
    after = exact.logits(merged)
    error = float((after - before).abs().max())
    detail = f"logits move by {error:.1e} in float32"
    if probe.recipe.quantization.quantizes:
        from_trained = float((after - probe.logits(run.model)).abs().max())
        detail += f"; they are {from_trained:.1e} from those over {probe.recipe.quantization.title}"
    return Check(name, error <= 1e-4, detail, "" if error <= 1e-4 else "use the adapter unmerged")


class StopAndResume(Callback):
    """Takes a snapshot after a step, or restores one at the start."""

    def __init__(self, step: int | None = None, snapshot: Snapshot | None = None) -> None:
        self.step = step
        self.snapshot = snapshot

    def on_train_begin(self, state: TrainState) -> None:
        if self.snapshot is not None:
            state.restore(self.snapshot)
        self._state = state

    def on_step_end(self, step: Step, total: int, log: TrainLog) -> None:
        if step.number == self.step:
            self.snapshot = stored(self._state.snapshot())


def check_resume(run: ProbeRun) -> Check:
    """A training that is resumed half-way from what a checkpoint holds ends in the bits of one that is not."""
    probe = run.probe
    _, model = probe.attached()
    uninterrupted = StopAndResume(step=STEPS // 2)
    train(probe.workload(model), [uninterrupted])
    _, resumed = probe.attached()
    train(probe.workload(resumed), [StopAndResume(snapshot=uninterrupted.snapshot)])
    ends = dict(resumed.named_parameters())
    other = [name for name, p in model.named_parameters() if p.requires_grad and not torch.equal(p, ends[name])]
    if not other:
        return Check("resume", True, "bit-identical to training without a break")
    expected = dict(model.named_parameters())
    away = max(distance(expected[name].detach(), ends[name].detach()) for name in other)
    cure = "do not interrupt this training: the method keeps a state that a checkpoint does not hold"
    return Check("resume", False, f"{len(other)} tensors end up to {away:.1e} of their largest value away", cure)


ALL: Mapping[str, Callable[[ProbeRun], Check]] = {
    "gradients": check_gradients,
    "only method and head train": check_only_the_method,
    "trains after evaluation": check_after_evaluation,
    "base unchanged": check_base_unchanged,
    "checkpointing on = off": check_checkpointing,
    "accumulation 4x1 = 1x4": check_accumulation,
    "save and reload": check_reload,
    "merge": check_merge,
    "resume": check_resume,
}


def error_text(error: Exception) -> str:
    """Type and first line of an error."""
    return f"{type(error).__name__}: {first_line(error)[:200]}"


def distance(one: Tensor, other: Tensor) -> float:
    """Largest difference, in units of the largest value of `other`."""
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-12))


def stored(snapshot: Snapshot) -> Snapshot:
    """The snapshot as it comes back from a checkpoint file: tensors by value, everything else through JSON."""
    tensors = {name: tensor.clone() for name, tensor in snapshot.tensors.items()}
    return Snapshot(snapshot.step, tensors, json.loads(json.dumps(snapshot.values)))


def unused(run: ProbeRun) -> set[str]:
    """Trainable tensors that no forward uses, if the method trains the base itself."""
    never = set.intersection(*(set(stats.missing) for stats in [*run.before, *run.after]))
    return never if run.probe.method.may_train_unused else set()


def _update(probe: ProbeModel, accumulation: int) -> Tensor:
    """The update of all trainable tensors by a few steps of the loop, each on all examples; flat."""
    _, model = probe.attached()
    start = copies_of_trainable(model)
    settings = Training(
        steps=STEPS,
        batch_examples=len(probe.examples),
        accumulation=accumulation,
        adam_epsilon=1.0,  # leaves Adam's update proportional to the gradient: a small one would magnify rounding
        evaluate_every=STEPS,
    )
    train(dataclasses.replace(probe.workload(model), settings=settings, learning_rate=0.1))
    ends = dict(model.named_parameters())
    return torch.cat([(ends[name].detach() - then).flatten() for name, then in start.items()])


def _check_stats(name: str, steps: Sequence[GradientStats], cure: str, unused: set[str]) -> Check:
    """Every used tensor has a gradient in every step, and one that is not zero in at least one of them."""
    missing = sorted({tensor for stats in steps for tensor in stats.missing} - unused)
    zero = sorted(set.intersection(*(set(stats.zero) for stats in steps)))
    if missing:
        detail = f"{len(missing)} of {steps[0].count} tensors get none: {', '.join(missing[:3])}"
        return Check(name, False, detail, cure)
    if zero:
        detail = f"of {len(zero)} of {steps[0].count} tensors it is exactly zero: {', '.join(zero[:3])}"
        return Check(name, False, detail, cure)
    count = steps[0].count - len(unused)
    rest = f"; {len(unused)} that no forward uses stay as they are: {', '.join(sorted(unused)[:2])}" if unused else ""
    return Check(name, count > 0, f"all {count} trainable tensors, in {len(steps)} steps{rest}", "" if count else cure)


def _flat(tensors: Mapping[str, Tensor | None]) -> Tensor:
    return torch.cat([tensor.float().flatten() for tensor in tensors.values() if tensor is not None])
