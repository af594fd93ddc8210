"""The attention kernel: the recipe's, or the faster one of two, measured once on this machine for a shape."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from peftlab.component import Precision
from peftlab.errors import UserError
from peftlab.results.environment import processor
from peftlab.sources.assets import cache_folder
from peftlab.training.batching import epoch_batches
from peftlab.training.settings import Training

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SPEEDUP = 1.2
"""How many times as fast as SDPA eager attention must be: a smaller difference may be noise, and it needs memory."""
REPEATS = 7


@dataclass(frozen=True)
class Shape:
    """Sizes of an attention input. `rows` and `tokens` are powers of two: similar batches share a measurement."""

    rows: int
    heads: int
    tokens: int
    """Per row."""
    width: int
    """Units per head."""


def current_attention(model: PreTrainedModel) -> str | None:
    """Name of the model's attention kernel in transformers, or None if it has no choice of them."""
    name: Any = getattr(model.config.get_text_config(), "_attn_implementation", None)
    return None if name is None else str(name)


def use_attention(model: PreTrainedModel, kernel: str | None) -> None:
    """Let the model compute attention with this kernel; None: as it does. Raises UserError if it cannot."""
    if kernel is None or kernel == current_attention(model):
        return
    reason = "its code does not let one choose"
    try:
        model.set_attn_implementation(kernel)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
    if current_attention(model) != kernel:
        raise UserError(f"training.attention: {model.config.model_type} has no {kernel} attention: {reason}")


def choose_attention(
    model: PreTrainedModel, training: Training, lengths: Sequence[int], precision: Precision, device: torch.device
) -> str | None:
    """Name of the kernel that a training on examples of these `lengths`, in tokens, should use; None: the model's own.

    `training.attention: auto` measures on CPUs only: on GPUs SDPA is never slower. Eager attention keeps the
    probabilities of all heads for the backward pass. It is chosen where these take no more than the layer's other
    activations: 5 * tokens <= 34 * head width (Korthikanti et al., 2022, equation 2, per token and hidden unit).
    """
    if training.attention != "auto":
        return training.attention
    shape = _shape(model, training, lengths)
    if device.type != "cpu" or current_attention(model) != "sdpa" or shape is None:
        return None
    if not model._can_set_attn_implementation():
        return None
    if 5 * max(lengths) > 34 * shape.width:
        return None
    return _faster(shape, getattr(torch, precision))


def _shape(model: PreTrainedModel, training: Training, lengths: Sequence[int]) -> Shape | None:
    """Shape of the median micro-batch of the first epoch, or None if the config does not tell its heads."""
    config: Any = model.config.get_text_config()
    heads, hidden = getattr(config, "num_attention_heads", None), getattr(config, "hidden_size", None)
    if not isinstance(heads, int) or not isinstance(hidden, int):
        return None
    width = getattr(config, "head_dim", None) or hidden // heads
    batches = epoch_batches(lengths, seed=0, epoch=0, **training.batch)
    tokens = statistics.median_low([max(lengths[i] for i in batch) for batch in batches])
    rows = statistics.median_low([len(batch) for batch in batches]) // training.accumulation
    return Shape(rows=_power_of_two(rows), heads=heads, tokens=_power_of_two(tokens), width=int(width))


def _power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`.

    >>> [_power_of_two(n) for n in (0, 1, 3, 8)]
    [1, 1, 4, 8]
    """
    return int(2 ** max(0, number - 1).bit_length())


def _faster(shape: Shape, dtype: torch.dtype) -> str:
    """The faster kernel, from the file of an earlier measurement if there is one: two runs must choose alike."""
    conditions = {
        **asdict(shape),
        "dtype": str(dtype),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": processor(),
    }
    digest = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()
    path = cache_folder() / "attention" / f"{digest[:16]}.json"
    kernel = _stored(path)
    if kernel is None:
        seconds = measure(shape, dtype)
        kernel = "eager" if seconds["eager"] * SPEEDUP < seconds["sdpa"] else "sdpa"
        _store(path, {"kernel": kernel, "seconds": seconds, **conditions})
    return _stored(path) or kernel  # another process may have been first


def _stored(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["kernel"])
    except (OSError, ValueError, KeyError):
        return None


def _store(path: Path, values: dict[str, Any]) -> None:
    """Write the file, unless another process has; a cache that cannot be written does no harm."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, encoding="utf-8") as file:
            json.dump(values, file, indent=2)
            file.flush()
            os.link(file.name, path)  # fails if it exists
    except OSError:
        pass


def measure(shape: Shape, dtype: torch.dtype) -> dict[str, float]:
    """Fastest seconds of a forward and backward pass of each kernel, by its name, interleaved."""
    generator = torch.Generator().manual_seed(0)
    size = (shape.rows, shape.heads, shape.tokens, shape.width)
    inputs = [torch.randn(size, generator=generator).to(dtype).requires_grad_() for _ in range(3)]
    mask = torch.zeros(shape.rows, 1, shape.tokens, shape.tokens, dtype=dtype)
    mask[..., shape.tokens - shape.tokens // 8 :] = torch.finfo(dtype).min  # padding
    kernels: dict[str, Callable[..., Tensor]] = {
        "eager": _eager,
        "sdpa": torch.nn.functional.scaled_dot_product_attention,
    }
    seconds = dict.fromkeys(kernels, float("inf"))
    with torch.enable_grad():
        for _ in range(REPEATS):
            for name, kernel in kernels.items():
                start = time.perf_counter()
                output = kernel(*inputs, mask)
                torch.autograd.grad(output, inputs, torch.ones_like(output))
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def _eager(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention as transformers' eager kernels compute it, in float32 from the scores to the probabilities."""
    scores = query @ key.mT * query.shape[-1] ** -0.5 + mask
    probabilities: Tensor = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return probabilities @ value
