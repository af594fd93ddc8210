"""What is done to the embeddings of the input in training, beside learning: adversarial steps (FGM), noise (NEFTune).

FGM (Miyato et al., 2017): a second forward and backward at e + epsilon * g / ||g||, with g the loss's gradient at an
example's word embeddings e, all its tokens together; its gradients add to those of the first. The paper first brings
the embeddings to mean 0 and variance 1, which a frozen base does not allow. The backward pass then goes down to the
embeddings, whatever is trained.

NEFTune (Jain et al., 2023): uniform noise in [-1, 1] * alpha / sqrt(L * d), L tokens of width d, drawn for each example
and step from the seed of the dropout.

Both are of an example alone, so that micro-batches and processes change nothing. Only the model's own input is
changed: virtual tokens and a decoder's input are not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from peftlab.errors import UserError
from peftlab.training.settings import Seeds, Training

Change = Callable[[Tensor], Tensor]  # of embeddings (batch, length, width)


@dataclass(frozen=True)
class Perturbation:
    """The forward passes that a micro-batch takes."""

    model: nn.Module
    adversarial: float | None
    noise: float | None
    seed: int

    @classmethod
    def of(cls, model: nn.Module, settings: Training, seeds: Seeds) -> Perturbation:
        return cls(model, settings.adversarial, settings.embedding_noise, seeds.dropout)

    @property
    def turns(self) -> int:
        """How often forward and backward are run for a micro-batch."""
        return 1 if self.adversarial is None else 2

    def passes(
        self, batch: Mapping[str, Tensor], examples: Sequence[int], step: int
    ) -> Iterator[contextlib.AbstractContextManager[None]]:
        """A context for each forward and backward. The first one's loss is the loss, the others' gradients add up."""
        if self.adversarial is None and self.noise is None:
            yield contextlib.nullcontext()
            return
        mask = _mask(batch)

        def noisy(embeddings: Tensor) -> Tensor:
            if self.noise is None:
                return embeddings
            return embeddings + _noise(embeddings, mask, self.noise, [[self.seed, step, i] for i in examples])

        if self.adversarial is None:
            yield self._changed(batch["input_ids"], noisy)
            return
        seen: list[Tensor] = []

        def watched(embeddings: Tensor) -> Tensor:
            seen.append(_with_gradient(noisy(embeddings)))
            return seen[0]

        epsilon = self.adversarial
        yield self._changed(batch["input_ids"], watched)
        gradient = seen[0].grad
        assert gradient is not None  # the loss depends on its input
        direction = _unit(gradient * mask.unsqueeze(-1))
        yield self._changed(batch["input_ids"], lambda embeddings: noisy(embeddings) + epsilon * direction)

    @contextlib.contextmanager
    def _changed(self, ids: Tensor, change: Change) -> Iterator[None]:
        """Within it the embeddings of `ids` are changed, once."""
        met = False

        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            nonlocal met
            if met or not (args[0] is ids or (args[0].shape == ids.shape and torch.equal(args[0], ids))):
                return output
            met = True
            return change(output)

        handles = [module.register_forward_hook(hook) for module in _input_embeddings(self.model)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        if not met:
            raise UserError(
                "training: this base does not look its input up in its embeddings, which adversarial and "
                "embedding_noise change; leave them out"
            )


def _input_embeddings(model: nn.Module) -> list[nn.Module]:
    """Every module that holds the input embeddings: a T5 has them three times."""
    own: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
    return [module for module in model.modules() if module is own or getattr(module, "weight", None) is own.weight]


def _mask(batch: Mapping[str, Tensor]) -> Tensor:
    """(batch, length), 1 where there is a token, 0 for padding."""
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"]) if mask is None or mask.ndim != 2 else mask


def _noise(embeddings: Tensor, mask: Tensor, alpha: float, seeds: Sequence[Sequence[int]]) -> Tensor:
    """NEFTune's, from a seed of its own for each example."""
    noise = torch.zeros_like(embeddings, dtype=torch.float32)
    generator = torch.Generator(embeddings.device)
    for row, seed, own in zip(noise, seeds, mask.bool(), strict=True):
        generator.manual_seed(int(np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)[0]))
        size = (int(own.sum()), embeddings.shape[-1])
        uniform = torch.rand(size, generator=generator, device=embeddings.device) * 2 - 1
        row[own] = uniform * alpha / max(1, size[0] * size[1]) ** 0.5
    return noise.to(embeddings.dtype)


def _with_gradient(embeddings: Tensor) -> Tensor:
    """The same, so that a backward pass leaves its gradient there, whether or not it comes from what is trained."""
    if embeddings.requires_grad:
        embeddings.retain_grad()
        return embeddings
    return embeddings.detach().requires_grad_()


def _unit(gradient: Tensor) -> Tensor:
    """g / ||g|| of each example (batch, length, width); 0 where there is no gradient."""
    norms = gradient.float().flatten(1).norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    unit: Tensor = gradient.float() / norms[:, None, None]
    return unit.to(gradient.dtype)
