"""The doctor: checks in seconds, on two layers of the base with random weights, that a recipe trains and reloads."""

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
from peftlab.doctor.checks import Check, distance, error_text, guarded
from peftlab.doctor.probe import LIBRARY_ERRORS, ProbeModel, make_probe_model, make_probe_run
from peftlab.errors import NotProbed, UserError
from peftlab.loading.attach import count_parameters
from peftlab.loading.model import Base, within
from peftlab.loading.reach import measure_reach, reach_lines
from peftlab.methods import Method, token_embeddings
from peftlab.models.model import KnownConfig
from peftlab.recipe import Recipe
from peftlab.results.reach import FULL


def examine(recipe: Recipe, device: torch.device | None = None) -> Iterator[Check]:
    """Check a recipe, one result after the other. Raises UserError if its method cannot be attached to its base."""
    config = recipe.model.config()
    with tempfile.TemporaryDirectory() as folder:
        try:
            probe = make_probe_model(recipe, config.values, Path(folder), device=device or Accelerator().device)
        except NotProbed as failure:
            yield Check("base", None, str(failure))
            return
        yield check_config(config)
        try:
            base, model = probe.attached()
        except UserError:
            raise
        except LIBRARY_ERRORS as error:
            yield Check("attached", False, error_text(error), "choose another method, quantization or base")
            return
        yield check_attached(probe, model, base)
        yield check_parameters(model, base)
        yield check_reach(probe, model, base)
        yield guarded("identity at start", lambda: check_identity(probe, model))
        try:
            run = make_probe_run(probe)
        except LIBRARY_ERRORS as error:
            yield Check("trains", False, error_text(error), "choose another method, quantization or base")
            return
        for name, check in checks.ALL.items():
            yield guarded(name, functools.partial(check, run))


def check_config(config: KnownConfig) -> Check:
    detail = f"{config.values['model_type']}, two layers as in {config.source}"
    if config.disagreement is None:
        return Check("base", True, detail)
    return Check(
        "base", False, f"{detail}; {config.disagreement}", "correct peftlab/models/configs.toml; config.json was used"
    )


def check_attached(probe: ProbeModel, model: nn.Module, base: Base) -> Check:
    """The modules that hold the method's parameters."""
    modules = {
        _module(name)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not within(name, base.head)
    }
    places = collections.Counter(_place(name) for name in sorted(modules))
    if places:
        text = ", ".join(place if count == 1 else f"{place} x{count}" for place, count in places.items())
        return Check("attached", True, text if len(text) < 160 else f"{len(modules)} modules: {text[:120]}...")
    if _adds_nothing(probe.method):
        return Check("attached", None, "nothing but the head trains")
    return Check("attached", False, "no module has a parameter of the method", "check method.targets")


def check_parameters(model: nn.Module, base: Base) -> Check:
    counts = count_parameters(model, base)
    detail = f"{counts.method:,} of the method, {counts.head:,} of the head, {base.parameters:,} in the small base"
    return Check("parameters", counts.trainable > 0, detail, "" if counts.trainable else "nothing would train")


def check_reach(probe: ProbeModel, model: nn.Module, base: Base) -> Check:
    """What the method adapts and the quantization packs of the small base. A warning is not a failure."""
    method = probe.method
    reach = measure_reach(method, base, model)
    partial = reach.packed is not None and reach.packed < FULL
    if reach.adapted is not None and not method.partial_by_choice:
        partial = partial or reach.adapted < FULL
    return Check("reach", None if partial else True, "; ".join(reach_lines(probe.recipe, base, reach)))


def check_identity(probe: ProbeModel, model: nn.Module) -> Check:
    """Before training, base and method give the base's logits, unless the method starts elsewhere by design."""
    method, name = probe.method, "identity at start"
    base = probe.base().model
    token_embeddings.add_rows(base, probe.tokens)  # a new token starts elsewhere than the base's spare row
    away = distance(probe.logits(model), probe.logits(base))
    detail = "logits bit-identical to the base's" if away == 0 else f"logits {away:.1e} of their size from the base's"
    if not method.starts_as_base:
        return Check(name, None, f"not an identity by design: {detail}")
    # A method that modifies the base subtracts from it what it adds: in bfloat16 both are rounded.
    rounding = {"float32": (1e-6, 1e-5), "bfloat16": (1e-2, 5e-2)}[probe.precision][method.modifies_base]
    ok = away <= rounding
    return Check(name, ok, detail, "" if ok else "the method must start from the base: check its initialization")


def _adds_nothing(method: Method) -> bool:
    return type(method).disabled is Method.disabled


def _module(name: str) -> str:
    """The module of the base that holds a parameter, or that the parameter's own module is attached to.

    >>> _module("bert.encoder.layer.0.attention.self.query.lora_A.default.weight")
    'bert.encoder.layer.0.attention.self.query'
    >>> _module("bert.encoder.layer.0.output.dense.bias"), _module("prompt_encoder.default.embedding.weight")
    ('bert.encoder.layer.0.output.dense', 'prompt_encoder')
    >>> _module("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta.default")
    'model.embed_tokens'
    """
    if token_embeddings.is_row(name):
        return name.removeprefix("base_model.model.").partition(".token_adapter.")[0]
    owner, default, _ = name.partition(".default")
    return owner.rpartition(".")[0] or owner if default else name.rpartition(".")[0]


def _place(module: str) -> str:
    """The module's name within its layer.

    >>> _place("bert.encoder.layer.0.attention.self.query")
    'attention.self.query'
    """
    return re.split(r"\.\d+\.", module)[-1]
