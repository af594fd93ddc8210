"""Promises of every method, over every precision and family. The file of a new method is discovered and tested.

A failure names the method, the promise, what was found and what was expected.
"""

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
from tests.contract.bases import SUPPORTED, Combination, Trained, require, require_close

Fresh = Callable[[str, str], PreTrainedModel]


def test_only_the_method_and_the_head_train(trained: Trained) -> None:
    combination, method = trained.combination, trained.method
    base_names = {id(p): name for name, (p, _) in trained.base.items() if id(p) not in trained.head}
    trainable = {name: p for name, p in trained.model.named_parameters() if p.requires_grad}
    require(bool(trainable), combination, "`apply` leaves parameters to train", found="none", expected="some")
    if not method.trains_base or method.modifies_base:
        of_base = [base_names[id(p)] for p in trainable.values() if id(p) in base_names]
        promise = "the base model's own parameters are frozen unless `trains_base`"
        require(not of_base, combination, promise, found=f"trainable: {of_base[:3]}", expected="none trainable")
    dtypes = {name: p.dtype for name, p in trainable.items() if p.dtype != torch.float32}
    require(not dtypes, combination, "trainable parameters are float32", found=dtypes, expected="torch.float32")
    for part in bases.plan(combination.family).head:
        names = [name for name in trained.snapshots[0] if f".{part}." in f".{name}"]
        promise = f"the head's modules in `plan.head` ({part}) train"
        require(len(names) == 2, combination, promise, found=names, expected="its weight and its bias")


def test_every_trainable_tensor_moves_before_and_after_an_evaluation(trained: Trained) -> None:
    before, between, after = trained.snapshots
    promise = "every trainable tensor receives updates, before and after an evaluation"
    for earlier, later in ((before, between), (between, after)):
        constant = [name for name, tensor in earlier.items() if torch.equal(tensor, later[name])]
        require(not constant, trained.combination, promise, found=f"unchanged: {constant[:3]}", expected="all changed")


def test_the_frozen_base_is_bit_identical_after_training(trained: Trained) -> None:
    frozen = {name: pair for name, pair in trained.base.items() if not pair[0].requires_grad}
    changed = [name for name, (after, before) in frozen.items() if not torch.equal(after, before)]
    promise = "training leaves frozen tensors of the base model as they are"
    require(not changed, trained.combination, promise, found=f"changed: {changed[:3]}", expected="none changed")


def test_saved_and_reloaded_in_another_process_it_gives_the_same_logits(
    trained: Trained, elsewhere: Callable[[Trained], Tensor]
) -> None:
    expected = bases.logits(trained.model, trained.combination.family)
    promise = "`load` in another process restores what `save` wrote"
    require_close(elsewhere(trained), expected, trained.combination, promise, atol=0)


def test_loaded_as_trainable_the_method_and_the_head_get_gradients(trained: Trained, fresh: Fresh) -> None:
    combination, family = trained.combination, trained.combination.family
    model = trained.method.load(fresh(family, combination.precision), trained.halfway, trainable=True)
    promise = "`load(trainable=True)` restores what `save` wrote"
    require_close(bases.logits(model, family), trained.evaluated, combination, promise, atol=1e-5)
    model.train()
    bases.loss(model(**bases.inputs(family)), family).backward()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    promise = "`load(trainable=True)` makes the method's parameters and the head trainable"
    require(bool(trainable), combination, promise, found="no trainable parameter", expected="some")
    without = [name for name, p in trainable.items() if p.grad is None]
    require(not without, combination, promise, found=f"no gradient: {without[:3]}", expected="a gradient of each")
    for part in bases.plan(family).head:
        of_head = any(f".{part}." in f".{name}" for name in trainable)
        require(of_head, combination, promise, found=f"{part} is frozen", expected=f"{part} is trainable")


def test_before_training_it_computes_the_base_if_starts_as_base(supported: Combination, fresh: Fresh) -> None:
    family, method = supported.family, supported.method
    expected = bases.logits(fresh(family, supported.precision), family)
    model = method.apply(fresh(family, supported.precision), bases.plan(family))
    distance = float((bases.logits(model, family) - expected).abs().max() / expected.abs().max())
    found = f"a relative difference of {distance:.3g}"
    if method.starts_as_base:
        limit = 1e-5 if method.modifies_base else 1e-6
        promise = "with `starts_as_base` the untrained method computes the base model's logits"
        require(distance <= limit, supported, promise, found=found, expected=f"at most {limit:g}")
    else:
        promise = "without `starts_as_base` the untrained method changes the logits"
        require(distance > 1e-3, supported, promise, found=found, expected="more than 1e-3")


def test_disabled_it_computes_the_base(trained: Trained, fresh: Fresh) -> None:
    if type(trained.method).disabled is Method.disabled:
        pytest.skip("adds nothing to the base")
    combination, family = trained.combination, trained.combination.family
    base = fresh(family, combination.precision)
    for part in bases.plan(family).head:
        trained_head = {
            name.rpartition(".")[2]: p
            for name, p in trained.model.named_parameters()
            if p.requires_grad and part in name
        }
        base.get_submodule(part).load_state_dict(trained_head)
    expected = bases.logits(base, family)
    promise = "within `disabled` the model computes the base model with the trained head"
    with trained.method.disabled(trained.model):
        logits = bases.logits(trained.model, family)
    require_close(logits, expected, combination, promise, atol=1e-5 if trained.method.modifies_base else 0)
    changed = not torch.equal(bases.logits(trained.model, family), expected)
    promise = "after `disabled` the model computes with the method again"
    require(changed, combination, promise, found="the base model's logits", expected="other logits")


def test_merged_into_a_float_base_it_gives_the_same_logits(trained: Trained) -> None:
    if not trained.method.merges or trained.combination.precision != "none":
        pytest.skip("does not merge")
    combination, family = trained.combination, trained.combination.family
    expected = bases.logits(trained.model, family)
    merged = trained.method.merge(copy.deepcopy(trained.model))
    remaining = [name for name, _ in merged.named_parameters() if "lora" in name or "ia3" in name]
    promise = "`merge` leaves no parameter of the method"
    require(not remaining, combination, promise, found=remaining[:3], expected="none")
    promise = "the merged model computes the same logits"
    require_close(bases.logits(merged, family), expected, combination, promise, atol=1e-4)


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
        scores = log_probabilities.masked_fill(ended, 0.0).sum(1)
        promise = "scores of generated sequences equal those of a forward pass"
        require_close(generated.sequences_scores, scores, trained.combination, promise, atol=1e-4)


def test_two_adapters_on_one_base_are_independent(trained: Trained, fresh: Fresh) -> None:
    method, combination, family = trained.method, trained.combination, trained.combination.family
    base = fresh(family, combination.precision)
    # The files of a method that modifies the base contain the difference: PEFT loads them onto the original base.
    load = PeftModel.from_pretrained if method.modifies_base else method.load
    atol = 1e-4 if method.modifies_base else 1e-5
    model = load(base, trained.halfway)
    if not hasattr(model, "load_adapter") or not hasattr(model, "peft_config"):
        pytest.skip("not an adapter of PEFT's")
    model.load_adapter(trained.saved, "second")
    first = bases.logits(model, family)
    promise = "a second adapter on the same base model leaves the first one as it is"
    require_close(first, trained.evaluated, combination, promise, atol=atol)
    model.set_adapter("second", inference_mode=True)
    expected = bases.logits(trained.model, family)
    promise = "a second adapter on the same base model computes what it was saved with"
    require_close(bases.logits(model, family), expected, combination, promise, atol=atol)
    model.set_adapter("default", inference_mode=True)
    promise = "the first adapter computes the same after a switch to the second and back"
    require_close(bases.logits(model, family), first, combination, promise, atol=0)


def test_an_unsupported_combination_has_a_one_line_reason(refused: Combination) -> None:
    one_line = bool(refused.reason) and "\n" not in str(refused.reason)
    promise = "`incompatible_with` gives the reason in one line"
    require(one_line, refused, promise, found=repr(refused.reason), expected="one line of text")


def test_a_broken_promise_is_reported_in_words() -> None:
    combination = SUPPORTED[0]
    with pytest.raises(pytest.fail.Exception) as caught:
        require_close(torch.zeros(2), torch.ones(2), combination, "the logits stay", atol=0.5)
    assert str(caught.value) == (
        f"{combination}: the logits stay\n  found:    a difference of 1\n  expected: at most 0.5"
    )
