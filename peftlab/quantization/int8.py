"""LLM.int8() (Dettmers et al., 2022): int8 weights with one scale per row; outlier columns are computed in float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from peftlab.component import Reference
from peftlab.quantization.quantization import Quantization, bitsandbytes_linears, follow_autocast

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import BitsAndBytesConfig


class Int8(Quantization):
    """8-bit weights of LLM.int8() (Dettmers et al., 2022): one byte per weight, a quarter of float32."""

    kind: Literal["int8"] = "int8"
    title: ClassVar[str] = "int8"
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            key="dettmers2022int8",
            author="Dettmers, Tim and others",
            title="LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale",
            year=2022,
            arxiv="2208.07339",
        ),
    )
    outlier_threshold: float = Field(6.0, ge=0)
    """Input magnitude from which a column is multiplied in float. Has an effect on GPUs only."""

    def remark(self, device: str) -> str | None:
        if device == "cuda":
            return "on a GPU inputs are also quantized and converted to float16: scores may differ from a CPU"
        return super().remark(device)

    def config(self, keep: Sequence[str], compute: torch.dtype) -> BitsAndBytesConfig:
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_threshold=self.outlier_threshold, llm_int8_skip_modules=list(keep)
        )

    def stored_as(self, config: Mapping[str, Any]) -> Self | None:
        return self if config.get("load_in_8bit") else None

    def incompatible_with_sharding(self) -> str | None:
        return "int8 weights cannot be sharded: their scales are stored separately; use nf4"

    def prepare(self, model: nn.Module) -> None:
        follow_autocast(model)
        for linear in bitsandbytes_linears(model).values():
            linear.register_forward_pre_hook(_keep_scales)
            linear.register_forward_pre_hook(_flatten_input)
            linear.register_forward_hook(_release_input)
            linear.register_forward_hook(_unflatten_output)

    def set_fake_weight(self, linear: nn.Module) -> None:
        import torch
        from torch import nn

        rows, columns = linear.out_features, linear.in_features
        weight: Any = nn.Parameter(torch.empty(rows, columns, dtype=torch.int8), requires_grad=False)  # type: ignore[call-overload]
        weight.CB, weight.SCB, weight.has_fp16_weights = weight.data, torch.empty(rows), False  # type: ignore[call-overload]
        linear.weight = weight


def _keep_scales(linear: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Keep the scales that the layer has moved to its state, also after the weight was read (DoRA does at each step).

    bitsandbytes would otherwise move the scales again, from a weight that has none.
    """
    weight: Any = linear.weight
    if weight.SCB is None and linear.state.SCB is not None:  # type: ignore[union-attr]
        weight.CB = None  # nothing to move


def _flatten_input(linear: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Flatten inputs of four and more dimensions, as of DeepSeek-V3's latent attention: bitsandbytes reads three."""
    linear.leading_shape = inputs[0].shape[:-1]  # type: ignore[assignment]
    return (inputs[0].flatten(1, -2), *inputs[1:]) if inputs[0].dim() > 3 else inputs


def _unflatten_output(linear: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    leading: Any = linear.leading_shape
    return output.unflatten(1, leading[1:]) if len(leading) > 2 else output


def _release_input(linear: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    """Release the input that bitsandbytes stores in the graph for the gradient of the weight, which is frozen.

    It is not one of autograd's saved tensors, so saved-tensor hooks do not see it. With it, an int8 step takes more
    memory than a float32 step.
    """
    node: Any = output.grad_fn
    if hasattr(node, "A"):  # autograd function on the CPU
        node.A = None
    if hasattr(node, "tensors"):  # autograd function on the GPU
        node.tensors = (None, None, None)
