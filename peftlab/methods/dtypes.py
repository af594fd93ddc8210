"""Dtypes that a method's own parameters need, and what comes out of its layers all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftlab.quantization.quantization import quantized_linears, to_autocast_dtype

if TYPE_CHECKING:
    from torch import Tensor, nn


def match_output_dtype(model: nn.Module) -> None:
    """Have PEFT's layers over quantised ones answer in autocast's dtype, or that of their input, as over float ones.

    They ask whether autocast is on, mean the GPU's, and on a CPU turn bfloat16 into float32, which norms refuse; on a
    GPU, where norms answer in float32, what follows would be float32 too.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    quantized = {id(linear) for linear in quantized_linears(model).values()}
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer) and id(layer.get_base_layer()) in quantized:
            layer.register_forward_hook(_answer_as_float_ones)


def compute_in_float32(model: nn.Module) -> None:
    """Give quantised layers float32 inputs: they round their bias, in place, to the precision of what comes in."""
    for linear in quantized_linears(model).values():
        linear.register_forward_pre_hook(_take_float)
        linear.register_forward_hook(_answer_in_autocasts_dtype)


def keep_float(module: nn.Module) -> None:
    """Hold the module's weights in float32, and answer in the dtype of its input all the same."""
    module.float().register_forward_hook(_answer_in_dtype_of_input)


def _answer_in_dtype_of_input(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.to(inputs[0].dtype)


def _answer_as_float_ones(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return to_autocast_dtype(output.to(inputs[0].dtype))


def _take_float(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].float(), *inputs[1:])


def _answer_in_autocasts_dtype(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return to_autocast_dtype(output)
