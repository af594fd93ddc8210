"""Dtypes under autocast, which quantised layers, and PEFT's around them, do not heed as a float layer does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def heed_autocast(model: nn.Module) -> None:
    """Have PEFT's layers over quantised ones compute and answer in the dtype that they would over float ones.

    They ask whether autocast is on, mean the GPU's, and on a CPU turn bfloat16 into float32, which norms refuse.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    from peftlab.quantization.quantization import quantized_linears

    quantized = {id(linear) for linear in quantized_linears(model).values()}
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer) and id(base := layer.get_base_layer()) in quantized:
            base.register_forward_pre_hook(_take_in_autocasts)
            layer.register_forward_hook(answer_in_dtype_of_input)


def keep_biases_float(model: nn.Module) -> None:
    """Give quantised layers float32 inputs: they round their bias, in place, to the precision of what comes in."""
    from peftlab.quantization.quantization import quantized_linears

    for linear in quantized_linears(model).values():
        linear.register_forward_pre_hook(_take_float)
        linear.register_forward_hook(_answer_in_autocasts)


def keep_float(module: nn.Module) -> None:
    """Hold the module's weights in float32, and answer in the dtype of its input all the same."""
    module.float().register_forward_hook(answer_in_dtype_of_input)


def answer_in_dtype_of_input(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.to(inputs[0].dtype)


def _take_in_autocasts(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (_in_autocasts(inputs[0]), *inputs[1:])


def _take_float(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].float(), *inputs[1:])


def _answer_in_autocasts(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return _in_autocasts(output)


def _in_autocasts(tensor: Tensor) -> Tensor:
    import torch

    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor
