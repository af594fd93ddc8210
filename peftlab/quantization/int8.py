"""LLM.int8() (Dettmers et al., 2022): int8 weights scaled by row, outlier columns of the input kept in float."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from peftlab.quantization.quantization import Quantization

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig


class Int8(Quantization):
    """One byte a weight. bitsandbytes keeps every linear's input for the backward pass, so activations take more, not less."""

    kind: Literal["int8"] = "int8"
    title: ClassVar[str] = "int8"
    paper: ClassVar[str | None] = "Dettmers et al., 2022, arXiv:2208.07339"
    outlier_threshold: float = Field(6.0, ge=0)  # input magnitude from which a column is multiplied in float; GPU only

    def config(self, keep: Sequence[str], compute: torch.dtype) -> BitsAndBytesConfig:
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_threshold=self.outlier_threshold, llm_int8_skip_modules=list(keep)
        )
