"""Does this combination really train, reload, merge? Checks on two layers of a base with random weights, in seconds."""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from torch import Tensor, nn

from peftlab import signs
from peftlab.base import Base, autocast, load_base, resolve_precision
from peftlab.examples import Example
from peftlab.methods import Method, Plan
from peftlab.model import Files, Shape
from peftlab.part import BadInput
from peftlab.quantization.none import NoQuantization
from peftlab.recipe import Recipe
from peftlab.run import apply_method, count_parameters
from peftlab.settings import Precision, Training
from peftlab.signs import Signs
from peftlab.small_model import byte_tokenizer, small_config
from peftlab.tasks import Task
from peftlab.training import Evaluation, Step, TrainLog, train

STEPS = 10  # of a training, an evaluation half-way
WIDTH = 256  # of the small model, where the base is wider
# What libraries raise when they meet a combination that they do not carry. The doctor's question is whether they do.
BREAKS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Check:
    """One line of the doctor's list."""

    name: str
    ok: bool | None  # None: does not apply
    detail: str
    cure: str = ""


@dataclass(frozen=True)
class Patient:
    """A recipe, and the small base on which it is examined. Dropout is off: what is compared must repeat."""

    recipe: Recipe
    task: Task  # fitted to the examples
    examples: Sequence[Example]
    padding_token: int
    tokenize: Callable[[str], list[int]]
    device: torch.device
    precision: Precision
    files: Files
    load: Callable[[Recipe, torch.dtype], Base]  # a base of one's own

    @property
    def method(self) -> Method:
        return self.recipe.method

    def base(self) -> Base:
        """Fresh, as a run loads it."""
        return self.load(self.recipe, getattr(torch, self.precision))

    def plan(self, base: Base) -> Plan:
        return Plan(
            optimizer_steps=STEPS,
            task_type=self.task.task_type,
            head=base.head,
            longest_input=max(len(example) for example in self.examples),
            seed=self.recipe.seeds.initialization,
            tokenize=self.tokenize,
        )

    def attached(self) -> tuple[Base, nn.Module]:
        """A fresh base, and the recipe's method on it as a run attaches it."""
        base = self.base()
        return base, apply_method(self.recipe, base, self.plan(base))

    def batch(self) -> dict[str, Tensor]:
        """All examples, padded."""
        batch = self.task.collate(self.examples, self.padding_token)
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def outputs(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Any:
        with autocast(self.precision, self.device):
            return model(**{name: tensor for name, tensor in batch.items() if name != "labels"})

    def logits(self, model: nn.Module) -> Tensor:
        """All the float outputs in evaluation, at positions that are no padding if they are by position."""
        was = model.training
        model.eval()
        batch = self.batch()
        with torch.no_grad():
            outputs = self.outputs(model, batch)
        model.train(was)
        shape = batch["attention_mask"].shape
        found = []
        for name, value in outputs.items():
            if name.endswith("logits"):
                by_position = value.shape[:2] == shape
                found.append((value[batch["attention_mask"].bool()] if by_position else value).float().flatten())
        return torch.cat(found)

    def backward(self, model: nn.Module) -> None:
        """One backward pass of the loss and the method's penalty, from a fixed state of chance."""
        torch.manual_seed(0)
        model.train()
        batch = self.batch()
        with autocast(self.precision, self.device):
            loss = self.task.loss(self.outputs(model, batch), batch) / self.task.targets(batch)
        loss.backward()
        penalty = self.method.penalty(model)
        if penalty is not None:
            penalty.backward()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        settings = self.recipe.training
        groups = self.method.parameter_groups(model, self.recipe.learning_rate, settings.weight_decay)
        return torch.optim.AdamW(groups, betas=settings.adam_betas, eps=settings.adam_epsilon)

    def steps(self, model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> list[Signs]:
        """Optimiser steps `first` to `last`, counted from 1, and what the gradients looked like in each."""
        seen = []
        for number in range(first, last + 1):
            self.backward(model)
            seen.append(signs.look(model))
            optimizer.step()
            self.method.after_step(model, number)
            optimizer.zero_grad()
        return seen


@dataclass(frozen=True)
class Trial:
    """One training of a patient, and what there was to see."""

    patient: Patient
    base: Base
    model: nn.Module  # trained
    strangers: tuple[
        str, ...
    ]  # parameters of the base that are neither head nor the method's, and yet require a gradient
    frozen: Mapping[str, tuple[Tensor, Tensor]]  # the base's frozen tensors: now, and before training
    before: Sequence[Signs]  # step by step before the evaluation
    evaluated: Mapping[str, Tensor]  # what is trainable, as it was then
    after: Sequence[Signs]


def examine(recipe: Recipe, device: torch.device | None = None) -> Iterator[Check]:
    """The doctor's list for a recipe, check by check. Raises BadInput if the recipe cannot be attached to its base."""
    shape = recipe.model.shape()
    with tempfile.TemporaryDirectory() as folder:
        patient = make_patient(recipe, shape.values, Path(folder), device=device or Accelerator().device)
        yield check_shape(shape)
        try:
            base, model = patient.attached()
        except BadInput:
            raise
        except BREAKS as error:
            yield Check("attached", False, broken(error), "choose another method, quantisation or base")
            return
        yield check_attached(patient, model, base)
        yield check_parameters(model, base)
        yield guarded("identity at start", lambda: check_identity(patient, model))
        try:
            trial = make_trial(patient)
        except BREAKS as error:
            yield Check("trains", False, broken(error), "choose another method, quantisation or base")
            return
        for name, check in CHECKS_OF_TRIAL.items():
            yield guarded(name, functools.partial(check, trial))


def make_patient(
    recipe: Recipe, shape: Mapping[str, Any], folder: Path, *, device: torch.device, width: int = WIDTH
) -> Patient:
    """Write a base of two layers with random weights into `folder`. Raises BadInput if there is no such model."""
    config = small_config(shape, width)
    tokenizer = byte_tokenizer(config)
    rows = recipe.task.sample()
    task = recipe.task.from_training(rows).fitted(rows)
    examples = task.encode(rows, tokenizer, limit=64).examples
    files = Files(folder, f"a small {config.model_type}", "")
    config = type(config).from_dict({**config.to_dict(), **task.model_settings()})
    torch.manual_seed(0)
    try:
        whole = getattr(transformers, task.auto_class).from_config(config)
    except ValueError as error:
        raise BadInput(f"model: a {config.model_type} cannot serve {task.kind}: {_first_line(error)[:200]}") from None
    whole.save_pretrained(folder)
    recipe = recipe.model_copy(update={"method": without_dropout(recipe.method)})

    @functools.cache
    def load(quantization: Any, frozen: bool, compute: torch.dtype) -> Base:
        settings = {"device": device, "compute": compute, "frozen": frozen, "padding_token": tokenizer.pad_token_id}
        return load_base(recipe.model, files, task, quantization, **settings)

    def fresh(wanted: Recipe, compute: torch.dtype) -> Base:
        kept = load(wanted.quantization, not wanted.method.trains_base, compute)
        return Base(copy.deepcopy(kept.model), kept.head, kept.parameters, kept.files)

    return Patient(
        recipe=recipe,
        task=task,
        examples=examples,
        padding_token=tokenizer.pad_token_id,
        tokenize=lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"]),
        device=device,
        precision=resolve_precision(recipe.training.precision, device),
        files=files,
        load=fresh,
    )


def make_trial(patient: Patient) -> Trial:
    """Train, evaluate, train on. Nothing is evaluated before: an evaluation is what may break training."""
    base = patient.base()
    own = {id(parameter): parameter for parameter in base.model.parameters()}  # kept, so that no id is given twice
    model = apply_method(patient.recipe, base, patient.plan(base))
    head = tuple(f".{name}." for name in base.head)
    strangers = tuple(
        name
        for name, p in model.named_parameters()
        if id(p) in own and p.requires_grad and not any(part in f".{name}." for part in head)
    )
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    frozen = {
        name: (tensor, tensor.detach().clone())
        for name, tensor in tensors.items()
        if not tensor.requires_grad and not any(part in f".{name}." for part in head)
    }
    optimizer = patient.optimizer(model)
    before = patient.steps(model, optimizer, 1, STEPS // 2)
    patient.logits(model)
    evaluated = _trainable(model)
    after = patient.steps(model, optimizer, STEPS // 2 + 1, STEPS)
    return Trial(patient, base, model, strangers, frozen, before, evaluated, after)


def guarded(name: str, check: Callable[[], Check]) -> Check:
    """What the check says, or that it broke."""
    try:
        return check()
    except BREAKS as error:
        return Check(name, False, broken(error), "this combination does not carry it; choose another")


def check_shape(shape: Shape) -> Check:
    detail = f"{shape.values['model_type']}, two layers as in {shape.source}"
    if shape.disagreement is None:
        return Check("base", True, detail)
    return Check("base", False, f"{detail}; {shape.disagreement}", "correct peftlab/shapes.toml; config.json was used")


def check_attached(patient: Patient, model: nn.Module, base: Base) -> Check:
    """Which modules hold the method's parameters."""
    head = tuple(f".{name}." for name in base.head)
    modules = {
        _module(name)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not any(part in f".{name}." for part in head)
    }
    places = collections.Counter(_place(name) for name in sorted(modules))
    if places:
        shown = ", ".join(place if count == 1 else f"{place} x{count}" for place, count in places.items())
        return Check("attached", True, shown if len(shown) < 160 else f"{len(modules)} modules: {shown[:120]}...")
    if _adds_nothing(patient.method):
        return Check("attached", None, "nothing but the head trains")
    return Check("attached", False, "no module has a parameter of the method", "check method.targets")


def check_parameters(model: nn.Module, base: Base) -> Check:
    counts = count_parameters(model, base)
    detail = f"{counts.method:,} of the method, {counts.head:,} of the head, {base.parameters:,} in the small base"
    return Check("parameters", counts.trainable > 0, detail, "" if counts.trainable else "nothing would train")


def check_identity(patient: Patient, model: nn.Module) -> Check:
    """Untrained, a method that can be folded into the base must leave it as it is; virtual tokens need not."""
    name = "identity at start"
    if _adds_nothing(patient.method):
        return Check(name, None, "nothing is added to the base")
    start = patient.logits(model)
    with patient.method.without(model):
        alone = patient.logits(model)
    away = _distance(start, alone)
    detail = "equal to the base to the bit" if away == 0 else f"logits {away:.1e} of their size from the base's"
    if not patient.method.merges:
        return Check(name, True if away == 0 else None, detail)
    ok = away <= {"float32": 1e-4, "bfloat16": 3e-2}[patient.precision]
    return Check(name, ok, detail, "" if ok else "the method must start from the base: check its initialisation")


def check_gradients(trial: Trial) -> Check:
    """Every trainable tensor got a gradient in the first step, and one that is not all zero within a few."""
    return _alive("gradients", trial.before, "the method does not reach the loss in this base; choose other targets")


def check_only_the_method(trial: Trial) -> Check:
    name = "only method and head train"
    if trial.patient.method.trains_base:
        return Check(name, None, "the method trains the base's own weights")
    if not trial.strangers:
        return Check(name, True, f"{trial.before[0].count} trainable tensors")
    return Check(name, False, f"{', '.join(trial.strangers[:3])} of the base would train", "freeze the base")


def check_base_untouched(trial: Trial) -> Check:
    changed = [name for name, (now, then) in trial.frozen.items() if not torch.equal(now, then)]
    if not changed:
        return Check(
            "base untouched", True, f"{len(trial.frozen)} frozen tensors are bit-identical after {STEPS} steps"
        )
    cure = "something writes into the frozen base; do not train this combination"
    return Check("base untouched", False, f"{len(changed)} frozen tensors changed: {', '.join(changed[:3])}", cure)


def check_after_evaluation(trial: Trial) -> Check:
    """The same of the steps after an evaluation, and that they move every tensor."""
    name = "trains after evaluation"
    alive = _alive(name, trial.after, "an evaluation ends training here: set quantization: none, or another precision")
    if not alive.ok:
        return alive
    start, now = trial.evaluated, dict(trial.model.named_parameters())
    still = [tensor for tensor, then in start.items() if torch.equal(then, now[tensor])]
    if not still:
        return alive
    cure = "the optimiser does not have them, or training.learning_rate is too small for their dtype"
    return Check(name, False, f"{len(still)} of {len(start)} tensors do not move: {', '.join(still[:3])}", cure)


def check_checkpointing(trial: Trial) -> Check:
    """Gradients with gradient checkpointing are those without it, or it is refused."""
    name = "checkpointing on = off"
    patient = trial.patient
    grads = {}
    for on in (False, True):
        training = patient.recipe.training.model_copy(update={"gradient_checkpointing": on})
        recipe = patient.recipe.model_copy(update={"training": training})
        reason = recipe.unsupported(trial.base.model.config.model_type)
        if reason is not None:
            return Check(name, None, f"refused: {reason}")
        base = patient.base()
        if on and not base.model.supports_gradient_checkpointing:
            return Check(name, None, f"{base.model.config.model_type} has none")
        model = apply_method(recipe, base, patient.plan(base))
        patient.steps(model, patient.optimizer(model), 1, 2)  # away from the start, where much is zero
        patient.backward(model)
        grads[on] = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    lost = [tensor for tensor, grad in grads[True].items() if grad is None and grads[False][tensor] is not None]
    if lost:
        return Check(name, False, f"with it {len(lost)} tensors get no gradient: {', '.join(lost[:3])}", _UNCHECKED)
    away = _distance(_flat(grads[True]), _flat(grads[False]))
    ok = away <= {"float32": 1e-5, "bfloat16": 1e-2}[patient.precision]
    detail = "the same gradients to the bit" if away == 0 else f"gradients differ by {away:.1e} of their size"
    return Check(name, ok, detail, "" if ok else _UNCHECKED)


_UNCHECKED = "set training.gradient_checkpointing: false"


def check_accumulation(trial: Trial) -> Check:
    """The loop itself takes the same step in one piece and in four."""
    patient = trial.patient
    whole, pieces = (_change(patient, accumulation) for accumulation in (1, 4))
    away = _distance(pieces, whole)
    ok = away <= {"float32": 1e-3, "bfloat16": 0.1}[patient.precision]
    detail = f"updates differ by {away:.1e} of their size"
    if ok:
        return Check("accumulation 4x1 = 1x4", True, detail)
    active = [name for name, module in trial.model.named_modules() if isinstance(module, nn.Dropout) and module.p > 0]
    if active:
        return Check("accumulation 4x1 = 1x4", False, detail, f"a dropout that no setting reaches: {active[0]}")
    return Check("accumulation 4x1 = 1x4", False, detail, "set training.accumulation: 1")


def check_reload(trial: Trial) -> Check:
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


def check_merge(trial: Trial) -> Check:
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


def check_resume(trial: Trial) -> Check:
    """Half a training, all that a checkpoint keeps, the other half: the same bits as without the break."""
    patient, half = trial.patient, STEPS // 2
    _, model = patient.attached()
    optimizer = patient.optimizer(model)
    patient.steps(model, optimizer, 1, half)
    weights = _trainable(model)
    moments = copy.deepcopy(optimizer.state_dict())
    state = _stored(patient.method.state(model))
    patient.steps(model, optimizer, half + 1, STEPS)

    _, resumed = patient.attached()
    with torch.no_grad():
        for name, parameter in resumed.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
    second = patient.optimizer(resumed)
    second.load_state_dict(moments)
    patient.method.load_state(resumed, state)
    patient.steps(resumed, second, half + 1, STEPS)
    ends = dict(resumed.named_parameters())
    other = [name for name, p in model.named_parameters() if p.requires_grad and not torch.equal(p, ends[name])]
    if not other:
        return Check("resume", True, "the same bits as without a break")
    begun = dict(model.named_parameters())
    away = max(_distance(begun[name].detach(), ends[name].detach()) for name in other)
    cure = "do not interrupt this training: the method keeps a state that a checkpoint does not hold"
    return Check("resume", False, f"{len(other)} tensors end up to {away:.1e} of their largest value away", cure)


CHECKS_OF_TRIAL: Mapping[str, Callable[[Trial], Check]] = {
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


def without_dropout(method: Method) -> Method:
    """The method, none of its dropouts on."""
    return type(method).model_validate(_no_dropout(method.model_dump()))


def _no_dropout(values: dict[str, Any]) -> dict[str, Any]:
    """
    >>> _no_dropout({"rank": 4, "dropout": 0.1, "settings": {"lora_dropout": 0.1}})
    {'rank': 4, 'dropout': 0.0, 'settings': {'lora_dropout': 0.0}}
    """
    found = {}
    for key, value in values.items():
        if isinstance(value, dict):
            value = _no_dropout(value)
        found[key] = 0.0 if "dropout" in key and isinstance(value, float) else value
    return found


def _change(patient: Patient, accumulation: int) -> Tensor:
    """What the loop does to all trainable tensors, with all examples in a step."""
    _, model = patient.attached()
    start = _trainable(model)
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
        observer=_Nobody(),
    )
    ends = dict(model.named_parameters())
    return torch.cat([(ends[name].detach() - then).flatten() for name, then in start.items()])


def _trainable(model: nn.Module) -> dict[str, Tensor]:
    """Copies, by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


class _Nobody:
    """An observer that looks away."""

    def step(self, step: Step, total: int, log: TrainLog) -> None: ...
    def evaluation(self, evaluation: Evaluation, best: bool) -> None: ...


def _alive(name: str, seen: Sequence[Signs], cure: str) -> Check:
    """Whether every tensor has a gradient in every step, and not zero in all of them."""
    missing = sorted({tensor for signs_ in seen for tensor in signs_.missing})
    zero = sorted(set.intersection(*(set(signs_.zero) for signs_ in seen)))
    if missing:
        return Check(name, False, f"{len(missing)} of {seen[0].count} tensors get none: {', '.join(missing[:3])}", cure)
    if zero:
        detail = f"of {len(zero)} of {seen[0].count} tensors it is exactly zero: {', '.join(zero[:3])}"
        return Check(name, False, detail, cure)
    return Check(name, True, f"all {seen[0].count} trainable tensors, in {len(seen)} steps")


def _stored(state: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from a checkpoint: tensors by value, everything else through JSON."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else json.loads(json.dumps(value))
        for name, value in state.items()
    }


def _adds_nothing(method: Method) -> bool:
    return type(method).without is Method.without


def _module(name: str) -> str:
    """The module of the base that a parameter is in or beside.

    >>> _module("bert.encoder.layer.0.attention.self.query.lora_A.default.weight")
    'bert.encoder.layer.0.attention.self.query'
    >>> _module("bert.encoder.layer.0.output.dense.bias"), _module("prompt_encoder.default.embedding.weight")
    ('bert.encoder.layer.0.output.dense', 'prompt_encoder')
    """
    owner, default, _ = name.partition(".default")
    return owner.rpartition(".")[0] or owner if default else name.rpartition(".")[0]


def _place(module: str) -> str:
    """The same in whichever layer.

    >>> _place("bert.encoder.layer.0.attention.self.query")
    'attention.self.query'
    """
    return re.split(r"\.\d+\.", module)[-1]


def _distance(one: Tensor, other: Tensor) -> float:
    """Largest difference, in units of the largest value of `other`."""
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-12))


def _flat(tensors: Mapping[str, Tensor | None]) -> Tensor:
    return torch.cat([tensor.float().flatten() for tensor in tensors.values() if tensor is not None])


def broken(error: Exception) -> str:
    return f"{type(error).__name__}: {_first_line(error)[:200]}"


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "")
