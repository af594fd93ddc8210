"""What a trial must show: that training reaches everything and nothing else, and that the rest repeats and reloads."""

from __future__ import annotations

import copy
import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from peftlab.doctor.probe import STEPS, ProbeModel, ProbeRun, copies_of_trainable, first_line, put_back
from peftlab.loading.attach import apply_method
from peftlab.loading.model import autocast
from peftlab.quantization.none import NoQuantization
from peftlab.training.gradient_checks import GradientStats
from peftlab.training.loop import train
from peftlab.training.settings import Training
from peftlab.training.train_log import Observers

# What libraries raise when they meet a combination that they do not carry. The doctor's question is whether they do.
BREAKS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Check:
    """One line of the doctor's list."""

    name: str
    ok: bool | None  # None: does not apply
    detail: str
    cure: str = ""


def guarded(name: str, check: Callable[[], Check]) -> Check:
    """What the check says, or that it broke."""
    try:
        return check()
    except BREAKS as error:
        return Check(name, False, broken(error), "this combination does not carry it; choose another")


def check_gradients(trial: ProbeRun) -> Check:
    """Every trainable tensor got a gradient in the first step, and one that is not all zero within a few."""
    cure = "the method does not reach the loss in this base; choose other targets"
    return _alive("gradients", trial.before, cure, unused(trial))


def check_only_the_method(trial: ProbeRun) -> Check:
    name = "only method and head train"
    if trial.patient.method.trains_base:
        return Check(name, None, "the method trains the base's own weights")
    if not trial.unexpected_trainable:
        return Check(name, True, f"{trial.before[0].count} trainable tensors")
    return Check(name, False, f"{', '.join(trial.unexpected_trainable[:3])} of the base would train", "freeze the base")


def check_base_untouched(trial: ProbeRun) -> Check:
    changed = [name for name, (now, then) in trial.frozen.items() if not torch.equal(now, then)]
    if not changed:
        return Check(
            "base untouched", True, f"{len(trial.frozen)} frozen tensors are bit-identical after {STEPS} steps"
        )
    cure = "something writes into the frozen base; do not train this combination"
    return Check("base untouched", False, f"{len(changed)} frozen tensors changed: {', '.join(changed[:3])}", cure)


def check_after_evaluation(trial: ProbeRun) -> Check:
    """The same of the steps after an evaluation, and that they move every tensor."""
    name = "trains after evaluation"
    cure = "an evaluation ends training here: set quantization: none, or another precision"
    alive = _alive(name, trial.after, cure, unused(trial))
    if not alive.ok:
        return alive
    start, now = trial.evaluated, dict(trial.model.named_parameters())
    moving = start.keys() - unused(trial)
    still = [tensor for tensor in start if tensor in moving and torch.equal(start[tensor], now[tensor])]
    if not still:
        return alive
    cure = "the optimiser does not have them, or training.learning_rate is too small for their dtype"
    return Check(name, False, f"{len(still)} of {len(moving)} tensors do not move: {', '.join(still[:3])}", cure)


def check_checkpointing(trial: ProbeRun) -> Check:
    """Gradients with gradient checkpointing are those without it, or it is refused."""
    name = "checkpointing on = off"
    patient = trial.patient
    grads = {}
    trained: dict[str, Tensor] = {}
    for on in (False, True):
        training = patient.recipe.training.model_copy(update={"gradient_checkpointing": on})
        recipe = patient.recipe.model_copy(update={"training": training})
        reason = recipe.incompatible_with(trial.base.model.config.model_type)
        if reason is not None:
            return Check(name, None, f"refused: {reason}")
        base = patient.base()
        if on and not base.model.supports_gradient_checkpointing:
            return Check(name, None, f"{base.model.config.model_type} has none")
        model = apply_method(recipe, base, patient.plan(base))
        if not on:
            patient.steps(model, patient.optimizer(model), 1, 2)  # away from the start, where much is zero
            trained = copies_of_trainable(model)
        else:
            put_back(model, trained)  # so that no rounding of the steps is in what is compared
        patient.backward(model)
        grads[on] = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    lost = [tensor for tensor, grad in grads[True].items() if grad is None and grads[False][tensor] is not None]
    if lost:
        return Check(name, False, f"with it {len(lost)} tensors get no gradient: {', '.join(lost[:3])}", _UNCHECKED)
    away = distance(_flat(grads[True]), _flat(grads[False]))
    ok = away <= {"float32": 1e-5, "bfloat16": 1e-2}[patient.precision]
    detail = "the same gradients to the bit" if away == 0 else f"gradients differ by {away:.1e} of their size"
    return Check(name, ok, detail, "" if ok else _UNCHECKED)


_UNCHECKED = "set training.gradient_checkpointing: false"


def check_accumulation(trial: ProbeRun) -> Check:
    """The loop itself takes the same step in one piece and in four."""
    patient = trial.patient
    whole, pieces = (_change(patient, accumulation) for accumulation in (1, 4))
    away = distance(pieces, whole)
    ok = away <= {"float32": 1e-3, "bfloat16": 0.1}[patient.precision]
    detail = f"updates differ by {away:.1e} of their size"
    if ok:
        return Check("accumulation 4x1 = 1x4", True, detail)
    active = [name for name, module in trial.model.named_modules() if isinstance(module, nn.Dropout) and module.p > 0]
    if active:
        return Check("accumulation 4x1 = 1x4", False, detail, f"a dropout that no setting reaches: {active[0]}")
    return Check("accumulation 4x1 = 1x4", False, detail, "set training.accumulation: 1")


def check_reload(trial: ProbeRun) -> Check:
    patient = trial.patient
    with tempfile.TemporaryDirectory() as folder:
        patient.method.save(trial.model, Path(folder))
        size = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
        loaded = patient.method.load(patient.base().model, Path(folder))
    loaded.to(patient.device)
    logits = patient.logits(trial.model)
    away = float((patient.logits(loaded) - logits).abs().max())
    ok = away <= 1e-5
    exact = "the same logits to the bit" if away == 0 else f"logits {away:.1e} from those saved"
    cure = "" if ok else "do not rely on this combination's saved files"
    return Check("save and reload", ok, f"{exact}, {size:,} bytes", cure)


def check_merge(trial: ProbeRun) -> Check:
    """In float32 on the unquantised base; how far that is from the model as trained is only said."""
    patient, name = trial.patient, "merge"
    if not patient.method.merges:
        return Check(name, None, "it computes beside the base and cannot be merged into it")
    recipe = patient.recipe.model_copy(update={"quantization": NoQuantization()})
    exact = dataclasses.replace(patient, recipe=recipe, precision="float32")
    with tempfile.TemporaryDirectory() as folder:
        patient.method.save(trial.model, Path(folder))
        whole = patient.method.load(exact.base().model, Path(folder))
    whole.to(patient.device)
    before = exact.logits(whole)
    merged = patient.method.merge(whole)
    after = exact.logits(merged)
    error = float((after - before).abs().max())
    detail = f"logits move by {error:.1e} in float32"
    if patient.recipe.quantization.quantizes:
        from_trained = float((after - patient.logits(trial.model)).abs().max())
        detail += f"; they are {from_trained:.1e} from those over {patient.recipe.quantization.title}"
    return Check(name, error <= 1e-4, detail, "" if error <= 1e-4 else "use the adapter unmerged")


def check_resume(trial: ProbeRun) -> Check:
    """Half a training, all that a checkpoint keeps, the other half: the same bits as without the break."""
    patient, half = trial.patient, STEPS // 2
    _, model = patient.attached()
    optimizer = patient.optimizer(model)
    patient.steps(model, optimizer, 1, half)
    weights = copies_of_trainable(model)
    moments = copy.deepcopy(optimizer.state_dict())
    state = _stored(patient.method.state(model))
    patient.steps(model, optimizer, half + 1, STEPS)

    _, resumed = patient.attached()
    put_back(resumed, weights)
    second = patient.optimizer(resumed)
    second.load_state_dict(moments)
    patient.method.load_state(resumed, state)
    patient.steps(resumed, second, half + 1, STEPS)
    ends = dict(resumed.named_parameters())
    other = [name for name, p in model.named_parameters() if p.requires_grad and not torch.equal(p, ends[name])]
    if not other:
        return Check("resume", True, "the same bits as without a break")
    begun = dict(model.named_parameters())
    away = max(distance(begun[name].detach(), ends[name].detach()) for name in other)
    cure = "do not interrupt this training: the method keeps a state that a checkpoint does not hold"
    return Check("resume", False, f"{len(other)} tensors end up to {away:.1e} of their largest value away", cure)


ALL: Mapping[str, Callable[[ProbeRun], Check]] = {
    "gradients": check_gradients,
    "only method and head train": check_only_the_method,
    "trains after evaluation": check_after_evaluation,
    "base untouched": check_base_untouched,
    "checkpointing on = off": check_checkpointing,
    "accumulation 4x1 = 1x4": check_accumulation,
    "save and reload": check_reload,
    "merge": check_merge,
    "resume": check_resume,
}


def broken(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)[:200]}"


def distance(one: Tensor, other: Tensor) -> float:
    """Largest difference, in units of the largest value of `other`."""
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-12))


def _change(patient: ProbeModel, accumulation: int) -> Tensor:
    """What the loop does to all trainable tensors, with all examples in a step."""
    _, model = patient.attached()
    start = copies_of_trainable(model)
    train(
        model,
        method=patient.method,
        task=patient.task,
        examples=patient.examples,
        padding_token=patient.padding_token,
        # A large epsilon leaves Adam proportional to the gradient: else it would blow up what is but rounding.
        settings=Training(
            steps=STEPS,
            batch_examples=len(patient.examples),
            accumulation=accumulation,
            adam_epsilon=1.0,
            evaluate_every=STEPS,
        ),
        learning_rate=0.1,
        seeds=patient.recipe.seeds,
        accelerator=Accelerator(cpu=patient.device.type == "cpu"),
        autocast=lambda: autocast(patient.precision, patient.device),
        evaluate=lambda: ({patient.task.selection: 0.0}, []),
        observer=Observers(),
    )
    ends = dict(model.named_parameters())
    return torch.cat([(ends[name].detach() - then).flatten() for name, then in start.items()])


def unused(trial: ProbeRun) -> set[str]:
    """What no forward uses of a base that is trained whole."""
    never = set.intersection(*(set(signs.missing) for signs in [*trial.before, *trial.after]))
    return never if trial.patient.method.may_train_unused else set()


def _alive(name: str, seen: Sequence[GradientStats], cure: str, unused: set[str]) -> Check:
    """Whether every tensor that is used has a gradient in every step, and not zero in all of them."""
    missing = sorted({tensor for signs_ in seen for tensor in signs_.missing} - unused)
    zero = sorted(set.intersection(*(set(signs_.zero) for signs_ in seen)))
    if missing:
        return Check(name, False, f"{len(missing)} of {seen[0].count} tensors get none: {', '.join(missing[:3])}", cure)
    if zero:
        detail = f"of {len(zero)} of {seen[0].count} tensors it is exactly zero: {', '.join(zero[:3])}"
        return Check(name, False, detail, cure)
    count = seen[0].count - len(unused)
    left = f"; {len(unused)} that no forward uses stay as they are: {', '.join(sorted(unused)[:2])}" if unused else ""
    return Check(name, count > 0, f"all {count} trainable tensors, in {len(seen)} steps{left}", "" if count else cure)


def _stored(state: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from a checkpoint: tensors by value, everything else through JSON."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else json.loads(json.dumps(value))
        for name, value in state.items()
    }


def _flat(tensors: Mapping[str, Tensor | None]) -> Tensor:
    return torch.cat([tensor.float().flatten() for tensor in tensors.values() if tensor is not None])
