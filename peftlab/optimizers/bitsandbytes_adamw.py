"""AdamW of bitsandbytes: 8-bit state (Dettmers et al., 2022), and state that is paged to the CPU's memory (QLoRA).

An 8-bit state holds one byte for each of the two averages of an element, and a float32 scale for every 256 of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from peftlab.component import Reference
from peftlab.optimizers.optimizer import Optimizer, OptimizerPlan, counts, trained

if TYPE_CHECKING:
    import torch
    from torch import nn

SMALLEST_8BIT = 4096
"""Elements of a tensor from which bitsandbytes stores the state in 8 bits (its `min_8bit_size`)."""
BLOCK = 256
"""Elements that share a scale."""
CODEBOOKS = 2 * 256 * 4
"""Bytes of the two tables of the values that 8 bits stand for, shared by all tensors."""
SMALLEST_PAGED = 100_000
"""Elements of a tensor from which bitsandbytes pages the state."""

EIGHT_BIT = Reference(
    key="dettmers2022optimizers",
    author="Dettmers, Tim and others",
    title="8-bit Optimizers via Block-wise Quantization",
    year=2022,
    arxiv="2110.02861",
)
PAGED = Reference(
    key="dettmers2023qlora",
    author="Dettmers, Tim and others",
    title="QLoRA: Efficient Finetuning of Quantized LLMs",
    year=2023,
    arxiv="2305.14314",
)


class BitsAndBytesAdamW(Optimizer):
    """AdamW of bitsandbytes. A subclass fixes how the state is stored."""

    shards: ClassVar[bool] = False
    bits: ClassVar[Literal[8, 32]]
    """Bits of an element of the state."""
    paged: ClassVar[bool]
    """True if a GPU that is out of memory moves the state to the CPU's memory."""

    def make(self, plan: OptimizerPlan) -> torch.optim.Optimizer:
        from peftlab.optimizers.implementations.bitsandbytes import StorableAdamW

        return StorableAdamW(plan.groups, betas=plan.betas, eps=plan.epsilon, optim_bits=self.bits, is_paged=self.paged)

    def state_bytes(self, model: nn.Module) -> int:
        sizes = [parameter.numel() for parameter in trained(model)]
        quantized = [size for size in sizes if self._is_8bit(size)]
        total = sum(2 * size + 2 * 4 * -(-size // BLOCK) for size in quantized) + (CODEBOOKS if quantized else 0)
        return total + sum(8 * size for size in sizes if not self._is_8bit(size))

    def remark(self, model: nn.Module, device: str) -> str | None:
        remarks = []
        if self.bits == 8:
            small = (parameter for parameter in trained(model) if not self._is_8bit(parameter.numel()))
            remarks.append(
                f"{counts(small, model)} have fewer than {SMALLEST_8BIT:,} elements and keep a float32 state"
            )
        if self.paged and device == "cpu":
            remarks.append("on a CPU the state is not paged")
        elif self.paged:
            small = (parameter for parameter in trained(model) if parameter.numel() < SMALLEST_PAGED)
            remarks.append(
                f"{counts(small, model)} have fewer than {SMALLEST_PAGED:,} elements and a state that is not paged"
            )
        return "; ".join(remarks) or None

    def _is_8bit(self, size: int) -> bool:
        return self.bits == 8 and size >= SMALLEST_8BIT


class AdamW8bit(BitsAndBytesAdamW):
    """AdamW with 8-bit state (Dettmers et al., 2022): 2 bytes per parameter; 8 in tensors below 4,096 elements."""

    kind: Literal["adamw_8bit"] = "adamw_8bit"
    title: ClassVar[str] = "8-bit AdamW"
    references: ClassVar[tuple[Reference, ...]] = (EIGHT_BIT,)
    bits: ClassVar[Literal[8, 32]] = 8
    paged: ClassVar[bool] = False


class PagedAdamW(BitsAndBytesAdamW):
    """Paged AdamW of QLoRA (Dettmers et al., 2023): a full GPU moves float32 state to the CPU's memory.

    That is the state of tensors of at least 100,000 elements. On a CPU nothing is paged.
    """

    kind: Literal["paged_adamw"] = "paged_adamw"
    title: ClassVar[str] = "paged AdamW"
    references: ClassVar[tuple[Reference, ...]] = (PAGED,)
    bits: ClassVar[Literal[8, 32]] = 32
    paged: ClassVar[bool] = True


class PagedAdamW8bit(BitsAndBytesAdamW):
    """Paged AdamW with 8-bit state: the least memory of the AdamW variants. Small tensors as in the other two."""

    kind: Literal["paged_adamw_8bit"] = "paged_adamw_8bit"
    title: ClassVar[str] = "paged 8-bit AdamW"
    references: ClassVar[tuple[Reference, ...]] = (EIGHT_BIT, PAGED)
    bits: ClassVar[Literal[8, 32]] = 8
    paged: ClassVar[bool] = True
