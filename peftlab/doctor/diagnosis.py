"""Does this combination really train, reload, merge? Checks on two layers of a base with random weights, in seconds."""

from __future__ import annotations

import collections
import functools
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from peftlab.doctor import checks
from peftlab.doctor.checks import BREAKS, Check, broken, distance, guarded
from peftlab.doctor.probe import ProbeModel, make_probe_model, make_probe_run
from peftlab.errors import UserError
from peftlab.loading.attach import count_parameters
from peftlab.loading.model import Base, within
from peftlab.methods import Method
from peftlab.models.model import Shape
from peftlab.recipe import Recipe


def examine(recipe: Recipe, device: torch.device | None = None) -> Iterator[Check]:
    """The doctor's list for a recipe, check by check. Raises UserError if the recipe cannot be attached to its base."""
    shape = recipe.model.shape()
    with tempfile.TemporaryDirectory() as folder:
        patient = make_probe_model(recipe, shape.values, Path(folder), device=device or Accelerator().device)
        yield check_shape(shape)
        try:
            base, model = patient.attached()
        except UserError:
            raise
        except BREAKS as error:
            yield Check("attached", False, broken(error), "choose another method, quantisation or base")
            return
        yield check_attached(patient, model, base)
        yield check_parameters(model, base)
        yield guarded("identity at start", lambda: check_identity(patient, model))
        try:
            trial = make_probe_run(patient)
        except BREAKS as error:
            yield Check("trains", False, broken(error), "choose another method, quantisation or base")
            return
        for name, check in checks.ALL.items():
            yield guarded(name, functools.partial(check, trial))


def check_shape(shape: Shape) -> Check:
    detail = f"{shape.values['model_type']}, two layers as in {shape.source}"
    if shape.disagreement is None:
        return Check("base", True, detail)
    return Check(
        "base", False, f"{detail}; {shape.disagreement}", "correct peftlab/models/shapes.toml; config.json was used"
    )


def check_attached(patient: ProbeModel, model: nn.Module, base: Base) -> Check:
    """Which modules hold the method's parameters."""
    modules = {
        _module(name)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not within(name, base.head)
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


def check_identity(patient: ProbeModel, model: nn.Module) -> Check:
    """Untrained, the method must leave the base as it was before it came, unless it is not meant to."""
    method, name = patient.method, "identity at start"
    away = distance(patient.logits(model), patient.logits(patient.base().model))
    detail = "equal to the base to the bit" if away == 0 else f"logits {away:.1e} of their size from the base's"
    if not method.starts_as_base:
        return Check(name, None, f"not an identity by design: {detail}")
    ok = away <= (1e-2 if patient.precision == "bfloat16" else 1e-5 if method.modifies_base else 1e-6)
    return Check(name, ok, detail, "" if ok else "the method must start from the base: check its initialisation")


def _adds_nothing(method: Method) -> bool:
    return type(method).disabled is Method.disabled


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
