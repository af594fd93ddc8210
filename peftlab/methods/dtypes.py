"""Dtypes of a method's parameters, and hooks that keep the outputs of its layers in the dtype that follows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftlab.quantization.autocast import to_autocast_dtype
from peftlab.quantization.quantization import bitsandbytes_linears

if TYPE_CHECKING:
    from torch import Tensor, nn


def match_output_dtype(model: nn.Module) -> None:
    """Make PEFT's layers over quantized linears return autocast's dtype, or their input's, as over float linears.

    PEFT checks whether autocast is enabled for the GPU only. On a CPU its quantized layers therefore turn bfloat16 into
    float32, which norms reject. On a GPU, where norms return float32, everything after them would be float32 too.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    quantized = {id(linear) for linear in bitsandbytes_linears(model).values()}
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer) and id(layer.get_base_layer()) in quantized:
            layer.register_forward_hook(_match_float_layer)


def compute_in_float32(model: nn.Module) -> None:
    """Feed quantized layers float32 inputs, because they round their bias in place to the dtype of the input."""
    for linear in bitsandbytes_linears(model).values():
        linear.register_forward_pre_hook(_input_to_float32)
        linear.register_forward_hook(_output_to_autocast_dtype)


def keep_float(module: nn.Module) -> None:
    """Hold the module's weights in float32 while its output keeps the dtype of its input."""
    module.float().register_forward_hook(_output_to_input_dtype)


def _output_to_input_dtype(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.to(inputs[0].dtype)


def _match_float_layer(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return to_autocast_dtype(output.to(inputs[0].dtype))


def _input_to_float32(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].float(), *inputs[1:])


def _output_to_autocast_dtype(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return to_autocast_dtype(output)
