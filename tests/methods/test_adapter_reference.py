"""Bottleneck adapters compared with AdapterHub: outputs, defaults and gradients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from peftlab.methods.adapter import Adapter
from tests.methods.adapters import adapted, tiny, trainable

REFERENCE = Path(__file__).parent / "adapterhub"
PAIRS = json.loads((REFERENCE / "index.json").read_text())["pairs"]


def without_float32_norms(model: nn.Module) -> nn.Module:
    """Replace transformers' RMS norms, which always compute in float32, by torch's, which are the same function."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "variance_epsilon"):
            model.set_submodule(name, nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon))
    return model


def reference(pair: str, exact: bool = False) -> tuple[nn.Module, dict[str, Tensor], dict[str, str]]:
    """Model with AdapterHub's weights, AdapterHub's tensors, and the model's name for each adapter tensor.

    `exact` converts the model to float64.
    """
    architecture, variant = pair.split("-")
    tensors = load_file(REFERENCE / f"{pair}.safetensors")
    base = tiny(architecture)
    base = without_float32_norms(base) if exact else base
    base.load_state_dict(
        {k.removeprefix("base."): v for k, v in tensors.items() if k.startswith("base.")}, strict=False
    )
    model = adapted(base, variant=variant).base_model.model
    ends = {
        "bert": {"output.adapters.a": "output.dropout"},
        "gpt2": {"attention_adapters.adapters.a": "attn.resid_dropout", "output_adapters.adapters.a": "mlp.dropout"},
        "llama": {"attention_adapters.adapters.a": "self_attn.o_proj", "output_adapters.adapters.a": "mlp"},
        "t5": {"adapters.a": "dropout"},
    }[architecture]
    names = {}
    for theirs in (key.removeprefix("adapter.") for key in tensors if key.startswith("adapter.")):
        ours = theirs.replace("adapter_down.0", "bottleneck_down.default")
        ours = ours.replace("adapter_up", "bottleneck_up.default")
        for old, new in ends.items():
            ours = ours.replace(old, new)
        names[theirs] = ours
    with torch.no_grad():
        for theirs, ours in names.items():
            model.get_parameter(ours).copy_(tensors[f"adapter.{theirs}"])
    assert set(names.values()) == set(trainable(model))
    return model.double() if exact else model, tensors, names


def last_hidden_state(model: nn.Module, tensors: dict[str, Tensor]) -> Tensor:
    return model(**{k.removeprefix("input."): v for k, v in tensors.items() if k.startswith("input.")})[0]


def gradients(model: nn.Module, loss: Tensor, names: dict[str, str]) -> Tensor:
    """All gradients as one float64 vector, in the order of `names`."""
    grads = torch.autograd.grad(loss, [model.get_parameter(ours) for ours in names.values()], retain_graph=True)
    return torch.cat([gradient.flatten().double() for gradient in grads])


@pytest.mark.parametrize("pair", PAIRS)
def test_outputs_equal_those_of_adapterhub(pair: str) -> None:
    model, tensors, _ = reference(pair)
    assert (last_hidden_state(model, tensors) - tensors["on"]).abs().max() < 1e-5


@pytest.mark.parametrize("pair", PAIRS)
def test_defaults_equal_those_of_adapterhub(pair: str) -> None:
    theirs, ours = PAIRS[pair]["config"], Adapter(variant=pair.split("-")[1], bottleneck=8)
    assert ours.activation == {"swish": "silu"}.get(theirs["non_linearity"], theirs["non_linearity"])
    assert ours.scaling == theirs["scaling"]


@pytest.mark.parametrize("pair", PAIRS)
def test_gradients_equal_those_of_adapterhub_up_to_float32_rounding(pair: str) -> None:
    """The loss, a sum of squares after a norm of unit gain, is nearly constant: terms of 10^2 cancel to 10^-5.

    Both float32 gradients are therefore compared with a float64 one, relative to the size of the terms that cancel.
    """
    model, tensors, names = reference(pair)
    theirs = torch.cat([tensors[f"grad.{name}"].flatten().double() for name in names])
    ours = gradients(model, last_hidden_state(model, tensors).square().sum(), names)
    model, *_ = reference(pair, exact=True)
    hidden = last_hidden_state(model, tensors).square()
    exact = gradients(model, hidden.sum(), names)
    rounding = 1e-6 * gradients(model, hidden[..., ::2].sum(), names).norm()
    assert (theirs - exact).norm() < rounding
    assert (ours - exact).norm() < rounding


@pytest.mark.parametrize("pair", PAIRS)
def test_gradients_are_the_derivatives_of_the_outputs(pair: str) -> None:
    """Compare with a central difference in float64, over half of the features, where no terms cancel."""
    model, tensors, names = reference(pair, exact=True)
    direction = {ours: torch.randn_like(model.get_parameter(ours)) for ours in names.values()}

    def loss(step: float) -> Tensor:
        moved = {ours: model.get_parameter(ours) + step * towards for ours, towards in direction.items()}
        inputs = {k.removeprefix("input."): v for k, v in tensors.items() if k.startswith("input.")}
        return torch.func.functional_call(model, moved, kwargs=inputs)[0][..., ::2].square().sum()

    slope = gradients(model, loss(0.0), names) @ torch.cat([towards.flatten() for towards in direction.values()])
    assert slope.item() == pytest.approx((loss(1e-6) - loss(-1e-6)).item() / 2e-6, rel=1e-4)
