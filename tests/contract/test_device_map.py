"""A model spread over devices by the hooks of accelerate: every method computes the same, on the devices of the layers.

With the CPU as every device the hooks must change nothing. The meta device as the second one shows where each tensor
is placed.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from accelerate import dispatch_model
from transformers import PreTrainedModel

from peftlab.methods.method import MethodContext
from tests.contract import bases
from tests.contract.bases import ARCHITECTURES, FAMILIES, SUPPORTED, Combination, coordinates
from tests.sampling import sampled

Fresh = Callable[[str, str], PreTrainedModel]


def reason(combination: Combination) -> str | None:
    context = MethodContext(
        architecture=ARCHITECTURES[combination.family],
        quantization=combination.precision,
        task_type=FAMILIES[combination.family],
        dispatched=True,
    )
    return combination.method.incompatible_with(context)


SPREAD = [c for c in SUPPORTED if c.precision != "int8" and reason(c) is None]
HALVES = {
    "bert": (
        ("bert.embeddings", "bert.encoder.layer.0"),
        ("bert.encoder.layer.1", "classifier"),
    ),
    "llama": (
        ("model.embed_tokens", "model.layers.0"),
        ("model.layers.1", "model.norm", "model.rotary_emb", "lm_head"),
    ),
    "t5": (
        ("shared", "encoder.embed_tokens", "decoder.embed_tokens", "encoder.block.0"),
        ("encoder.block.1", "encoder.final_layer_norm", "decoder.block", "decoder.final_layer_norm", "lm_head"),
    ),
}
CPU = torch.device("cpu")  # the string "cpu" would mean weights offloaded from a GPU
LAYER = re.compile(r"\w+\.(?:layer|layers|block)\.\d+\.")  # including the name of the stack
# Virtual tokens are in no layer, and PiSSA decomposes the base, which needs values.
IN_LAYERS = [c for c in SPREAD if c.precision == "none" and not c.method.positions and not c.method.modifies_base]


def over(base: PreTrainedModel, second: torch.device) -> PreTrainedModel:
    """`base` with its first half on the CPU and the rest on `second`, dispatched as by `from_pretrained`."""
    earlier, later = HALVES[base.config.model_type]
    base.hf_device_map = dict.fromkeys(earlier, CPU) | dict.fromkeys(later, second)
    dispatch_model(base, base.hf_device_map, skip_keys=base._skip_keys_device_placement, force_hooks=True)
    return base


def trained(combination: Combination, base: PreTrainedModel) -> list[torch.Tensor]:
    """The losses of three steps, and the logits after them."""
    method, family = combination.method, combination.family
    torch.manual_seed(3)
    model = method.apply(base, bases.plan(family)).train()
    optimizer = torch.optim.AdamW(method.parameter_groups(model, 1e-2, 0.0))
    losses = []
    for step in range(1, 4):
        loss = bases.loss(model(**bases.inputs(family)), family)
        loss.backward()
        optimizer.step()
        method.after_step(model, step)
        optimizer.zero_grad()
        losses.append(loss.detach())
    return [*losses, bases.logits(model, family)]


@pytest.mark.parametrize("combination", sampled(SPREAD, coordinates), ids=str)
def test_a_dispatched_model_trains_bit_identically(combination: Combination, fresh: Fresh) -> None:
    expected = trained(combination, fresh(combination.family, combination.precision))
    base = over(fresh(combination.family, combination.precision), CPU)
    dispatched = trained(combination, base)
    promise = "dispatched over devices, losses and logits stay bit-identical"
    for actual, plain in zip(dispatched, expected, strict=True):
        bases.require_close(actual, plain, combination, promise, atol=0)


@pytest.mark.parametrize("combination", sampled(IN_LAYERS, coordinates), ids=str)
def test_added_parameters_are_on_the_device_of_their_layer(combination: Combination, fresh: Fresh) -> None:
    method, family = combination.method, combination.family
    base = over(fresh(family, "none"), torch.device("meta"))
    base_parameters = {id(parameter) for parameter in base.parameters()}
    devices = {match[0]: p.device for name, p in base.named_parameters() if (match := LAYER.search(name))}
    model = method.apply(base, bases.plan(family))
    added = {name: p for name, p in model.named_parameters() if id(p) not in base_parameters and LAYER.search(name)}
    misplaced = [name for name, p in added.items() if p.device != devices[LAYER.search(name)[0]]]  # type: ignore[index]
    promise = "added parameters are on the device of their layer"
    bases.require(not misplaced, combination, promise, found=f"elsewhere: {misplaced[:3]}", expected="none elsewhere")
    all_layers = getattr(method, "layers", None) is None
    if not method.trains_base and method.kind != "head" and all_layers:
        assert {p.device.type for p in added.values()} == {"cpu", "meta"}


def test_methods_that_compare_all_layers_or_read_the_encoders_places_are_refused() -> None:
    refused = {(combination.kind, combination.family) for combination in SUPPORTED if reason(combination)}
    assert {family for kind, family in refused if kind == "adalora"} == {
        c.family for c in SUPPORTED if c.kind == "adalora"
    }
    assert {pair for pair in refused if pair[0] != "adalora"} == {("prefix_tuning", "encoder-decoder")}
