"""The loss of a causal language model: each target is told from the tokens before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftlab.tasks.task import IGNORED

if TYPE_CHECKING:
    import torch


def next_token_nats(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of each target, one after the other; float32. logits (batch, length, vocabulary), labels (batch, length)."""
    from torch.nn.functional import cross_entropy

    labels = labels[:, 1:]
    learnt = labels != IGNORED
    # Chosen before they are made float32: the logits of a large vocabulary are most of a small model's memory.
    return cross_entropy(logits[:, :-1][learnt].float(), labels[learnt], reduction="none")
