"""What every method promises, over every precision and family: a new method's file is found and tested unasked."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from peftlab.methods import Method
from tests.contract import bases
from tests.contract.bases import Combination, Trained

Fresh = Callable[[str, str], PreTrainedModel]


def test_only_the_method_and_the_head_train(trained: Trained) -> None:
    base_names = {id(p): name for name, (p, _) in trained.base.items() if id(p) not in trained.head}
    trainable = [p for p in trained.model.parameters() if p.requires_grad]
    assert trainable
    trains_base = trained.method.trains_base and not trained.method.modifies_base
    assert trains_base or not [base_names[id(p)] for p in trainable if id(p) in base_names]
    assert all(p.dtype == torch.float32 for p in trainable)
    for part in bases.plan(trained.combination.family).head:
        assert sum(f".{part}." in f".{name}" for name in trained.snapshots[0]) == 2  # weight and bias


def test_every_trainable_tensor_moves_before_and_after_an_evaluation(trained: Trained) -> None:
    before, between, after = trained.snapshots
    assert [name for name, tensor in before.items() if torch.equal(tensor, between[name])] == []
    assert [name for name, tensor in between.items() if torch.equal(tensor, after[name])] == []


def test_the_frozen_base_is_bit_identical_after_training(trained: Trained) -> None:
    frozen = {name: pair for name, pair in trained.base.items() if not pair[0].requires_grad}
    assert [name for name, (after, before) in frozen.items() if not torch.equal(after, before)] == []


def test_saved_and_reloaded_in_another_process_it_gives_the_same_logits(
    trained: Trained, elsewhere: Callable[[Trained], Tensor]
) -> None:
    expected = bases.logits(trained.model, trained.combination.family)
    assert torch.equal(elsewhere(trained), expected)


def test_loaded_as_trainable_the_method_and_the_head_get_gradients(trained: Trained, fresh: Fresh) -> None:
    family = trained.combination.family
    model = trained.method.load(fresh(family, trained.combination.precision), trained.halfway, trainable=True)
    assert torch.allclose(bases.logits(model, family), trained.evaluated, atol=1e-5)
    model.train()
    bases.loss(model(**bases.inputs(family)), family).backward()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trainable
    assert [name for name, p in trainable.items() if p.grad is None] == []
    for part in bases.plan(family).head:
        assert any(f".{part}." in f".{name}" for name in trainable)


def test_before_training_it_computes_the_base_if_starts_as_base(supported: Combination, fresh: Fresh) -> None:
    family, method = supported.family, supported.method
    expected = bases.logits(fresh(family, supported.precision), family)
    model = method.apply(fresh(family, supported.precision), bases.plan(family))
    distance = (bases.logits(model, family) - expected).abs().max() / expected.abs().max()
    if method.starts_as_base:
        assert distance <= (1e-5 if method.modifies_base else 1e-6)
    else:
        assert distance > 1e-3


def test_disabled_it_computes_the_base(trained: Trained, fresh: Fresh) -> None:
    if type(trained.method).disabled is Method.disabled:
        pytest.skip("adds nothing to the base")
    family = trained.combination.family
    base = fresh(family, trained.combination.precision)
    for part in bases.plan(family).head:
        trained_head = {
            name.rpartition(".")[2]: p
            for name, p in trained.model.named_parameters()
            if p.requires_grad and part in name
        }
        base.get_submodule(part).load_state_dict(trained_head)
    expected = bases.logits(base, family)
    with trained.method.disabled(trained.model):
        distance = (bases.logits(trained.model, family) - expected).abs().max()
    assert distance <= (1e-5 if trained.method.modifies_base else 0)
    assert not torch.equal(bases.logits(trained.model, family), expected)


def test_merged_into_a_float_base_it_gives_the_same_logits(trained: Trained) -> None:
    if not trained.method.merges or trained.combination.precision != "none":
        pytest.skip("does not merge")
    family = trained.combination.family
    expected = bases.logits(trained.model, family)
    merged = trained.method.merge(copy.deepcopy(trained.model))
    assert [name for name, _ in merged.named_parameters() if "lora" in name or "ia3" in name] == []
    assert (bases.logits(merged, family) - expected).abs().max() <= 1e-4


def test_scores_of_generated_sequences_are_those_of_a_forward_pass(trained: Trained, fresh: Fresh) -> None:
    """Beam search uses caches, in which virtual tokens must have their place; a forward pass uses none."""
    family = trained.combination.family
    if family != "encoder-decoder":
        pytest.skip("only encoder-decoder models generate in this test")
    encoder_inputs = {name: tensor for name, tensor in bases.inputs(family).items() if name != "decoder_input_ids"}
    loaded = trained.method.load(fresh(family, trained.combination.precision), trained.saved)
    for model in (trained.model, loaded):
        model.eval()
        generated = model.generate(  # type: ignore[operator]
            **encoder_inputs,
            max_new_tokens=6,
            num_beams=3,
            length_penalty=0.0,
            return_dict_in_generate=True,
            output_scores=True,
        )
        sequences = generated.sequences
        with torch.no_grad():
            logits = model(**encoder_inputs, decoder_input_ids=sequences[:, :-1]).logits
        log_probabilities = logits.log_softmax(-1).gather(2, sequences[:, 1:, None])[..., 0]
        ended = (sequences[:, 1:] == 1).cumsum(1).cumsum(1) > 1  # T5's end of text is token 1
        assert torch.allclose(log_probabilities.masked_fill(ended, 0.0).sum(1), generated.sequences_scores, atol=1e-4)


def test_two_adapters_on_one_base_are_independent(trained: Trained, fresh: Fresh) -> None:
    method, family = trained.method, trained.combination.family
    base = fresh(family, trained.combination.precision)
    # The files of a method that modifies the base contain the difference: PEFT loads them onto the original base.
    load = PeftModel.from_pretrained if method.modifies_base else method.load
    atol = 1e-4 if method.modifies_base else 1e-5
    model = load(base, trained.halfway)
    if not hasattr(model, "load_adapter") or not hasattr(model, "peft_config"):
        pytest.skip("not an adapter of PEFT's")
    model.load_adapter(trained.saved, "second")
    first = bases.logits(model, family)
    assert torch.allclose(first, trained.evaluated, atol=atol)
    model.set_adapter("second", inference_mode=True)
    assert torch.allclose(bases.logits(model, family), bases.logits(trained.model, family), atol=atol)
    model.set_adapter("default", inference_mode=True)
    assert torch.equal(bases.logits(model, family), first)


def test_an_unsupported_combination_has_a_one_line_reason(refused: Combination) -> None:
    assert refused.reason
    assert "\n" not in refused.reason
