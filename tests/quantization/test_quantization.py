"""The interface of a quantization: what is obligatory, what has a default, and what can be sharded."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import pytest
import torch

from peftlab.quantization import QUANTIZATIONS, Quantization
from peftlab.quantization.four_bit import NF4
from peftlab.quantization.int8 import Int8
from peftlab.quantization.none import NoQuantization


class Complete(Quantization):
    """A quantization with nothing but the obligatory parts."""

    kind: Literal["complete"] = "complete"
    title: ClassVar[str] = "complete"

    def config(self, keep: Any, compute: Any) -> None:
        return None


def test_the_obligatory_parts_are_enough() -> None:
    quantization = Complete()
    assert quantization.quantizes
    assert quantization.incompatible_with_sharding() is None
    assert quantization.as_shardable() == quantization
    with pytest.raises(NotImplementedError, match="complete has no fake weights"):
        quantization.set_fake_weight(torch.nn.Linear(2, 2))


def test_a_quantization_without_a_config_fails_with_its_name() -> None:
    incomplete = type("Incomplete", (Quantization,), {"title": "incomplete", "__module__": __name__})
    with pytest.raises(TypeError, match=r"Incomplete .*config"):
        incomplete(kind="incomplete")


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_what_cannot_be_sharded_has_a_one_line_reason(kind: str) -> None:
    reason = QUANTIZATIONS[kind]().incompatible_with_sharding()
    assert reason is None or "\n" not in reason


def test_float_storage_makes_four_bit_weights_shardable() -> None:
    assert NF4().incompatible_with_sharding() == (
        "nf4 in uint8 storage cannot be sharded: set quantization.storage: bfloat16"
    )
    assert NF4().as_shardable() == NF4(storage="bfloat16")
    assert NF4(storage="float32").as_shardable() == NF4(storage="float32")
    assert Int8().as_shardable().incompatible_with_sharding() is not None
    assert NoQuantization().incompatible_with_sharding() is None
