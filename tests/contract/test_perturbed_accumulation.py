"""Gradient accumulation with FGM and NEFTune: four micro-batches train as one batch does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from peftlab.training.loop import train
from peftlab.training.settings import Seeds, Training
from peftlab.training.workload import Workload
from tests.contract import bases
from tests.contract.test_accumulation import STEPS, examples

TRIED = [
    bases.Combination(kind, 0, precision, "encoder")
    for kind, precision in [
        *((kind, "none") for kind in ("full", "head", "lora", "adapter", "bitfit", "p_tuning", "prompt_tuning")),
        *(("prefix_tuning", "none"), ("lora", "int8"), ("lora", "nf4"), ("prompt_tuning", "nf4"), ("ia3", "nf4")),
    ]
]


def change(base: PreTrainedModel, combination: bases.Combination, **settings: object) -> dict[str, Tensor]:
    """Change of each trainable tensor by training."""
    method = combination.method
    torch.manual_seed(3)
    model = method.apply(base, bases.plan("encoder"))
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    defaults = {"steps": STEPS, "batch_examples": 8, "adam_epsilon": 1.0, "warmup": 0.0, **settings}
    train(
        Workload(
            model=model,
            method=method,
            task=bases.TASK,
            examples=examples(),
            padding_token=0,
            settings=Training.model_validate(defaults),
            learning_rate=0.1,
            seeds=Seeds(),
            accelerator=Accelerator(cpu=True),
            evaluate=lambda: ({"entity_f1": 0.0}, []),
        )
    )
    return {name: p.detach() - start[name] for name, p in model.named_parameters() if name in start}


@pytest.mark.parametrize("combination", TRIED, ids=str)
def test_four_perturbed_micro_batches_train_as_one_batch(
    combination: bases.Combination, fresh: Callable[[str, str], PreTrainedModel]
) -> None:
    options = {"adversarial": 0.5, "embedding_noise": 5.0}
    plain = change(fresh("encoder", combination.precision), combination)
    full_batch = change(fresh("encoder", combination.precision), combination, **options)
    micro_batches = change(fresh("encoder", combination.precision), combination, accumulation=4, **options)
    effect = max(float((full_batch[name] - plain[name]).abs().max()) for name in full_batch)
    promise = "the perturbation changes what training does"
    bases.require(effect > 1e-4, combination, promise, found=effect, expected="> 1e-4")
    distances = {name: float((tensor - micro_batches[name]).abs().max()) for name, tensor in full_batch.items()}
    far = {name: distance for name, distance in distances.items() if distance > 2e-6}
    promise = "four perturbed micro-batches change each tensor as one batch does"
    bases.require(not far, combination, promise, found=f"differences of {far}", expected="at most 2e-6")
