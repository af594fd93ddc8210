"""FLOPs of a training step: its matrix products, with those of quantized layers and of attention on the CPU."""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import Any

import bitsandbytes  # noqa: F401 (registers its operators)
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

Shape = tuple[int, ...]


def _product(rows: Shape, columns: int) -> int:
    return 2 * math.prod(rows) * columns


def _four_bit(input: Shape, packed: Shape, weight: Shape, *rest: Any, **named: Any) -> int:
    return _product(input, weight[0])


def _int8(input: Shape, weight: Shape, *rest: Any, **named: Any) -> int:
    return _product(input, weight[0])


def _mixed_int8(input: Shape, quantized: Shape, weight: Shape, *rest: Any, **named: Any) -> int:
    return _product(input, weight[0])


def _attention(query: Shape, key: Shape, value: Shape, *rest: Any, **named: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(gradient: Shape, query: Shape, key: Shape, value: Shape, *rest: Any, **named: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


def formulas() -> dict[Any, Any]:
    """FLOP formulas of operators that torch does not count. Dequantization is no matrix product and has none."""
    ops, aten = torch.ops.bitsandbytes, torch.ops.aten
    return {
        ops.gemm_4bit: _four_bit,
        ops.gemv_4bit: _four_bit,
        ops.int8_linear_matmul: _int8,
        ops.int8_scaled_mm: _int8,
        ops.int8_mixed_scaled_mm: _mixed_int8,
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }


class FlopRecorder:
    """Counts FLOPs by the phase of a step."""

    def __init__(self) -> None:
        self._counter = FlopCounterMode(display=False, custom_mapping=formulas())
        self._counted = 0
        self.by_phase: dict[str, int] = {}

    def __enter__(self) -> FlopRecorder:
        self._counter.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._counter.__exit__(kind, error, trace)

    def mark(self, phase: str) -> None:
        total = self._counter.get_total_flops()
        self.by_phase[phase] = self.by_phase.get(phase, 0) + total - self._counted
        self._counted = total


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product: the best of several."""
    size, repeats = (8192, 10) if device.type == "cuda" else (1024, 5)
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    best = math.inf
    for _ in range(repeats + 1):  # the first warms up and is never the best
        start = _now(device)
        matrix @ matrix
        best = min(best, _now(device) - start)
    return 2 * size**3 / best


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
