"""4-bit formats of QLoRA (Dettmers et al., 2023): one scale per 64 weights; the scales are quantized as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from peftlab.component import Reference
from peftlab.quantization.quantization import Quantization, bitsandbytes_linears, follow_autocast

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import BitsAndBytesConfig

BLOCK, SCALE_BLOCK = 64, 256  # bitsandbytes' block sizes: weights per scale, scales per second-level scale


class FourBit(Quantization):
    """4-bit weights, half a byte each. A subclass fixes the sixteen `values` that a weight can take."""

    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            key="dettmers2023qlora",
            author="Dettmers, Tim and others",
            title="QLoRA: Efficient Finetuning of Quantized LLMs",
            year=2023,
            arxiv="2305.14314",
        ),
    )
    values: ClassVar[Literal["nf4", "fp4"]]
    """bitsandbytes' name of the sixteen values that a weight can take."""

    double_quantization: bool = True
    """Quantize the scales as well, which saves 0.37 bits per weight."""
    storage: Literal["uint8", "float32", "bfloat16"] = "uint8"
    """Dtype of the packed tensor. FSDP needs a float dtype, the same as the rest of the base model."""

    def config(self, keep: Sequence[str], compute: torch.dtype) -> BitsAndBytesConfig:
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.values,
            bnb_4bit_use_double_quant=self.double_quantization,
            bnb_4bit_compute_dtype=compute,
            bnb_4bit_quant_storage=self.storage,
            llm_int8_skip_modules=list(keep),
        )

    def stored_as(self, config: Mapping[str, Any]) -> Self | None:
        if not config.get("load_in_4bit") or config.get("bnb_4bit_quant_type", "fp4") != self.values:
            return None
        scales, storage = config.get("bnb_4bit_use_double_quant", False), config.get("bnb_4bit_quant_storage")
        return self.model_copy(update={"double_quantization": scales, "storage": storage or "uint8"})

    def incompatible_with_sharding(self) -> str | None:
        if self.storage == "uint8":
            return f"{self.kind} in uint8 storage cannot be sharded: set quantization.storage: bfloat16"
        return None

    def as_shardable(self) -> Self:
        return self.model_copy(update={"storage": "bfloat16"}) if self.incompatible_with_sharding() else self

    def prepare(self, model: nn.Module) -> None:
        follow_autocast(model)
        # On a CPU with AVX512-BF16 bitsandbytes repacks the weights at the first evaluation for a kernel without a
        # backward pass; later steps would train nothing.
        for linear in bitsandbytes_linears(model).values():
            linear.support_avx512bf16_for_cpu = False  # type: ignore[assignment]

    def set_fake_weight(self, linear: nn.Module) -> None:
        import torch
        from bitsandbytes.functional import QuantState
        from torch import nn

        rows, columns = int(linear.out_features), int(linear.in_features)  # type: ignore[arg-type]
        storage: torch.dtype = getattr(torch, self.storage)
        blocks = -(-rows * columns // BLOCK)
        weight: Any = nn.Parameter(
            torch.empty((rows * columns + 1) // (2 * storage.itemsize), 1, dtype=storage), requires_grad=False
        )
        # The codebooks: 16 values of a weight and, with double quantization, 256 values of a scale.
        inner = None
        if self.double_quantization:
            inner = QuantState(
                absmax=torch.empty(-(-blocks // SCALE_BLOCK)),
                code=torch.empty(256),
                blocksize=SCALE_BLOCK,
                dtype=torch.float32,
            )
        weight.quant_state = QuantState(
            absmax=torch.empty(blocks, dtype=torch.uint8 if inner else torch.float32),
            shape=torch.Size((rows, columns)),
            code=torch.empty(16),
            blocksize=BLOCK,
            quant_type=self.values,
            dtype=linear.compute_dtype,
            offset=torch.empty(()) if inner else None,
            state2=inner,
        )
        weight.compress_statistics, weight.quant_type = self.double_quantization, self.values
        weight.quant_storage, weight.blocksize, weight.bnb_quantized = storage, BLOCK, True
        linear.weight, linear.quant_state = weight, weight.quant_state
        linear.register_forward_pre_hook(_restore_quant_state)


def _restore_quant_state(linear: Any, inputs: object) -> None:
    """Attach the state to a weight that FSDP has gathered, which lacks it; bitsandbytes would convert the weight."""
    linear.weight.quant_state = linear.quant_state


class NF4(FourBit):
    """4-bit NormalFloat of QLoRA (Dettmers et al., 2023): values are quantiles of a normal distribution."""

    kind: Literal["nf4"] = "nf4"
    title: ClassVar[str] = "NF4"
    values: ClassVar[Literal["nf4", "fp4"]] = "nf4"


class FP4(FourBit):
    """4-bit float of QLoRA (Dettmers et al., 2023): a sign bit, two exponent bits, one mantissa bit."""

    kind: Literal["fp4"] = "fp4"
    title: ClassVar[str] = "FP4"
    values: ClassVar[Literal["nf4", "fp4"]] = "fp4"
