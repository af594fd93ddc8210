"""NEFTune (Jain et al., 2023, arXiv:2310.05914): uniform noise on the embeddings of the input.

Noise in [-1, 1] * alpha / sqrt(L * d) for L tokens of width d, drawn for each example and step from the dropout seed,
so that micro-batches and processes change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def embedding_noise(embeddings: Tensor, mask: Tensor, alpha: float, seeds: Sequence[Sequence[int]]) -> Tensor:
    """Noise for embeddings (batch, length, width), 0 where `mask` (batch, length) is 0; one seed per example."""
    noise = torch.zeros_like(embeddings, dtype=torch.float32)
    generator = torch.Generator(embeddings.device)
    for row, seed, tokens in zip(noise, seeds, mask.bool(), strict=True):
        generator.manual_seed(int(np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)[0]))
        size = (int(tokens.sum()), embeddings.shape[-1])
        uniform = torch.rand(size, generator=generator, device=embeddings.device) * 2 - 1
        row[tokens] = uniform * alpha / max(1, size[0] * size[1]) ** 0.5
    return noise.to(embeddings.dtype)
