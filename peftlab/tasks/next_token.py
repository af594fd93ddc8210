"""Loss of causal language models: each target token is predicted from the tokens before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftlab.tasks.task import IGNORED

if TYPE_CHECKING:
    import torch


def next_token_nats(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each target in nats, (targets,) float32.

    logits (batch, length, vocabulary); labels (batch, length) int64, not shifted, -100 ignored.
    """
    from torch.nn.functional import cross_entropy

    labels = labels[:, 1:]
    is_target = labels != IGNORED
    # Selected before the cast to float32: the logits of a large vocabulary take most of a small model's memory.
    return cross_entropy(logits[:, :-1][is_target].float(), labels[is_target], reduction="none")
