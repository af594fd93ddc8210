"""FGM and NEFTune: their arithmetic against a reference, and that they are of an example alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from peftlab.data.examples import Encoded
from peftlab.errors import UserError
from peftlab.loading.model import Base
from peftlab.tasks import Task
from peftlab.training.adversarial import ForwardPasses
from peftlab.training.settings import Seeds, Training
from tests.contract import bases
from tests.training.test_loop import distance, trained

Load = Callable[..., Base]
CLASSES = {
    "bert": "AutoModelForTokenClassification",
    "distilbert": "AutoModelForTokenClassification",
    "gpt2": "AutoModelForCausalLM",
    "llama": "AutoModelForCausalLM",
    "t5": "AutoModelForSeq2SeqLM",
}


def inputs(architecture: str, padding: int = 0) -> dict[str, Tensor]:
    ids = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(0))
    ids[1, 6:] = 0
    ids = torch.nn.functional.pad(ids, (0, padding))
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    if architecture == "t5":
        batch["decoder_input_ids"] = ids[:, :4].flip(0).contiguous()
    return batch


def loss_of(outputs: object) -> Tensor:
    logits: Tensor = outputs.logits  # type: ignore[attr-defined]
    return torch.log_softmax(logits[:, :4].float(), dim=-1)[..., 1].sum().neg()


def ours(model: nn.Module, batch: dict[str, Tensor], **settings: object) -> tuple[dict[str, Tensor], list[float]]:
    """Gradients and losses of a micro-batch of examples 5 and 7 in step 3."""
    forward_passes = ForwardPasses.of(model, Training.model_validate(settings), Seeds())
    model.zero_grad()
    losses = []
    for perturbed in forward_passes.contexts(batch, [5, 7], 3):
        with perturbed:
            loss = loss_of(model(**batch))
            loss.backward()
        losses.append(loss.item())
    assert len(losses) == forward_passes.count
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, losses


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("architecture", CLASSES)
def test_fgm_adds_the_gradient_at_the_embeddings_moved_by_epsilon_along_their_gradient(
    architecture: str, frozen: bool
) -> None:
    shape = {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 64} if architecture == "distilbert" else {}
    sizes = bases.SIZES.get(architecture, {}) if architecture != "bert" else {}
    model = bases.tiny(architecture, CLASSES[architecture], **{**shape, **sizes})
    model.get_input_embeddings().weight.requires_grad_(not frozen)
    batch = inputs(architecture)
    found, losses = ours(model, batch, adversarial=0.7)

    model.zero_grad()
    table = model.get_input_embeddings()
    embeddings = table(batch["input_ids"]).detach().requires_grad_()
    rest = {name: tensor for name, tensor in batch.items() if name != "input_ids"}
    (gradient,) = torch.autograd.grad(loss_of(model(inputs_embeds=embeddings, **rest)), embeddings)
    norm = gradient.flatten(1).norm(dim=1)[:, None, None]  # of each example
    moved = 0.7 * gradient / norm
    model.zero_grad()
    clean = loss_of(model(inputs_embeds=table(batch["input_ids"]), **rest))
    harder = loss_of(model(inputs_embeds=table(batch["input_ids"]) + moved, **rest))
    (clean + harder).backward()
    assert losses == pytest.approx([clean.item(), harder.item()], rel=1e-5)
    assert losses[1] > losses[0]
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(found[name], p.grad, atol=1e-5, rtol=1e-4)


def seen_embeddings(model: PreTrainedModel, batch: dict[str, Tensor], step: int = 3, **settings: object) -> Tensor:
    """What the first layer gets in place of the looked-up embeddings."""
    forward_passes = ForwardPasses.of(model, Training.model_validate(settings), Seeds())
    (perturbed,) = forward_passes.contexts(batch, [5, 7], step)
    with perturbed:
        return model.get_input_embeddings()(batch["input_ids"]).detach()


def test_neftune_adds_uniform_noise_of_alpha_over_the_root_of_length_times_width() -> None:
    model = bases.tiny("bert", CLASSES["bert"])
    batch = inputs("bert")
    delta = (
        seen_embeddings(model, batch, embedding_noise=5.0) - model.get_input_embeddings()(batch["input_ids"]).detach()
    )
    for row, length in zip(delta, (9, 6), strict=True):
        bound = 5.0 / (length * 64) ** 0.5
        noise = row[:length] / bound
        assert noise.abs().max() <= 1.0 + 1e-5
        assert noise.abs().max() > 0.98
        assert noise.mean().abs() < 0.1
        assert float(noise.var()) == pytest.approx(1 / 3, abs=0.05)  # of the uniform distribution on [-1, 1]
        assert not row[length:].any()


def test_neftunes_noise_is_of_example_and_step_whatever_the_padding_and_gone_outside_training() -> None:
    model = bases.tiny("bert", CLASSES["bert"])
    batch, wider = inputs("bert"), inputs("bert", padding=4)
    here = seen_embeddings(model, batch, embedding_noise=5.0)
    assert torch.equal(here, seen_embeddings(model, batch, embedding_noise=5.0))
    assert torch.equal(here, seen_embeddings(model, wider, embedding_noise=5.0)[:, :9])
    assert not torch.equal(here, seen_embeddings(model, batch, step=4, embedding_noise=5.0))
    plain = model.get_input_embeddings()(batch["input_ids"])
    assert not torch.equal(here, plain)
    assert not model.get_input_embeddings()._forward_hooks


def test_what_never_meets_the_embeddings_is_an_error() -> None:
    model = bases.tiny("bert", CLASSES["bert"])
    batch = inputs("bert")
    (perturbed,) = ForwardPasses.of(model, Training(embedding_noise=1.0), Seeds()).contexts(batch, [5, 7], 1)
    with pytest.raises(UserError, match="does not look its input up in its embeddings"), perturbed:
        model(inputs_embeds=torch.zeros(2, 9, 64))


def test_the_loss_that_is_reported_is_that_without_the_adversarial_step(
    base_of: Load, tagging: Task, encoded: Encoded
) -> None:
    _, plain = trained(base_of(), tagging, encoded, steps=1)
    with_fgm, log = trained(base_of(), tagging, encoded, steps=1, adversarial=1.0)
    assert log.steps[0].loss == pytest.approx(plain.steps[0].loss, abs=1e-6)
    without, _ = trained(base_of(), tagging, encoded, steps=1)
    assert distance(with_fgm, without) > 1e-6


@pytest.mark.slow
def test_it_goes_through_checkpointed_layers(base_of: Load, tagging: Task, encoded: Encoded) -> None:
    results = []
    for checkpointed in (False, True):
        base = base_of()
        if checkpointed:
            base.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        results.append(trained(base, tagging, encoded, steps=2, adversarial=1.0, embedding_noise=5.0)[0])
    assert distance(*results) < 1e-6
