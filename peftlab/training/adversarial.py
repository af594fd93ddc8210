"""FGM (Miyato et al., 2017, arXiv:1605.07725): a second pass at embeddings moved against the model.

The second forward and backward are at e + epsilon * g / ||g||, where g is the gradient of the loss at an example's word
embeddings e, all its tokens together; its gradients add to those of the first. The paper first normalizes the
embeddings to mean 0 and variance 1, which a frozen base does not allow. The backward pass reaches the embeddings,
whatever is trained. Each example is perturbed by its own gradient, so that micro-batches and processes change nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peftlab.training.embedding_hook import token_mask, transformed_embeddings
from peftlab.training.embedding_noise import embedding_noise
from peftlab.training.settings import Seeds, Training


@dataclass(frozen=True)
class ForwardPasses:
    """Forward passes of a micro-batch: one, or two with FGM; NEFTune's noise is the same in both."""

    model: nn.Module
    epsilon: float | None  # norm of FGM's perturbation
    alpha: float | None  # NEFTune's
    seed: int

    @classmethod
    def of(cls, model: nn.Module, settings: Training, seeds: Seeds) -> ForwardPasses:
        return cls(model, settings.adversarial, settings.embedding_noise, seeds.dropout)

    @property
    def count(self) -> int:
        """Number of forward and backward passes of a micro-batch."""
        return 1 if self.epsilon is None else 2

    def contexts(
        self, batch: Mapping[str, Tensor], examples: Sequence[int], step: int
    ) -> Iterator[contextlib.AbstractContextManager[None]]:
        """A context for each forward and backward; the reported loss is that of the first.

        The generator must be advanced only after the backward in the previous context.
        """
        if self.epsilon is None and self.alpha is None:
            yield contextlib.nullcontext()
            return
        ids, mask = batch["input_ids"], token_mask(batch)

        def noisy(embeddings: Tensor) -> Tensor:
            if self.alpha is None:
                return embeddings
            return embeddings + embedding_noise(embeddings, mask, self.alpha, [[self.seed, step, i] for i in examples])

        if self.epsilon is None:
            yield transformed_embeddings(self.model, ids, noisy)
            return
        leaves: list[Tensor] = []

        def watched(embeddings: Tensor) -> Tensor:
            leaves.append(_retain_grad(noisy(embeddings)))
            return leaves[0]

        epsilon = self.epsilon
        yield transformed_embeddings(self.model, ids, watched)
        gradient = leaves[0].grad
        assert gradient is not None  # the loss depends on its input
        direction = _unit(gradient * mask.unsqueeze(-1))
        yield transformed_embeddings(self.model, ids, lambda embeddings: noisy(embeddings) + epsilon * direction)


def _retain_grad(embeddings: Tensor) -> Tensor:
    """The embeddings, so that a backward pass leaves their gradient in `grad` even if they are computed frozen."""
    if embeddings.requires_grad:
        embeddings.retain_grad()
        return embeddings
    return embeddings.detach().requires_grad_()


def _unit(gradient: Tensor) -> Tensor:
    """g / ||g|| of each example, (batch, length, width); 0 where there is no gradient."""
    norms = gradient.float().flatten(1).norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    unit: Tensor = gradient.float() / norms[:, None, None]
    return unit.to(gradient.dtype)
