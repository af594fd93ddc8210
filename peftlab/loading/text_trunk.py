"""The trunk of a base model without the parts that text does not reach, and the experts in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from peftlab.errors import UserError
from peftlab.methods.trunk import EXPERTS, Trunk, find_trunk
from peftlab.models.text_branch import outside
from peftlab.quantization import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def text_trunk(skeleton: PreTrainedModel, head: Sequence[str]) -> Trunk:
    """The trunk of a base model without quantization, on the meta device."""
    return find_trunk(skeleton, [*head, *outside(skeleton, head)])


def refuse_float_experts(quantization: Quantization, trunk: Trunk, compute: torch.dtype) -> None:
    """Raise UserError if a quantization would leave most of the base, its stacked experts, in float unasked."""
    if not quantization.quantizes or quantization.float_experts or not trunk.experts:
        return
    weights = sum(math.prod(trunk.shapes[name]) for name in trunk.experts)
    gib = weights * compute.itemsize / 2**30
    raise UserError(
        f"quantization: {quantization.kind} packs linear layers, and {weights / trunk.size:.1%} of the trunk's matrix "
        f"weights are {EXPERTS}: {gib:,.3g} GiB that would stay in {str(compute).removeprefix('torch.')}; to accept it "
        f"write quantization: {{kind: {quantization.kind}, float_experts: true}}"
    )
