"""AdaLoRA: pruning to the target rank, one penalty per step, reloading and resuming."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from pydantic import ValidationError
from torch import nn
from transformers import BertConfig, BertForTokenClassification

from peftlab.errors import UserError
from peftlab.methods.adalora import AdaLora
from peftlab.methods.method import TrainingPlan
from peftlab.training.loop import train
from peftlab.training.settings import Seeds, Training
from peftlab.training.workload import Workload
from tests.contract.bases import TASK
from tests.contract.test_accumulation import examples

STEPS = 10
METHOD = AdaLora(initial_rank=6, target_rank=3, pruning_interval=1)
BATCH = {"input_ids": torch.arange(3, 19).view(2, 8), "attention_mask": torch.ones(2, 8, dtype=torch.long)}
LABELS = torch.arange(16).view(2, 8) % 3


def base() -> BertForTokenClassification:
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    config = BertConfig(vocab_size=97, num_labels=3, hidden_dropout_prob=0, attention_probs_dropout_prob=0, **shape)
    return BertForTokenClassification(config).eval()


def adapted(method: AdaLora = METHOD, steps: int = STEPS) -> Any:
    torch.manual_seed(1)
    return method.apply(base(), TrainingPlan(optimizer_steps=steps, task_type="TOKEN_CLS", head=("classifier",)))


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**BATCH).logits


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range, method: AdaLora = METHOD) -> None:
    """The optimizer steps of the training loop."""
    model.train()
    for number in numbers:
        nn.functional.cross_entropy(model(**BATCH).logits.flatten(0, 1), LABELS.flatten()).backward()
        penalty = method.penalty(model)
        assert penalty is not None
        penalty.backward()
        optimizer.step()
        method.after_step(model, number)
        optimizer.zero_grad()


def trained(method: AdaLora = METHOD, until: int = STEPS) -> tuple[Any, torch.optim.Optimizer]:
    model = adapted(method)
    optimizer = torch.optim.AdamW(method.parameter_groups(model, 1e-2, 0.0))
    steps(model, optimizer, range(1, until + 1), method)
    return model, optimizer


def test_a_run_prunes_to_the_target_rank_and_records_the_final_ranks() -> None:
    model = adapted(steps=6)
    train(
        Workload(
            model=model,
            method=METHOD,
            task=TASK,
            examples=examples(),
            padding_token=0,
            settings=Training(steps=6, batch_examples=8, keep_best=False),
            learning_rate=1e-2,
            seeds=Seeds(),
            accelerator=Accelerator(cpu=True),
            evaluate=lambda: ({"entity_f1": 0.0}, []),
        )
    )
    figures = METHOD.stats(model)
    ranks = figures["ranks"].values()
    assert figures["final_rank"] == 3
    assert len(ranks) == 12
    assert sum(ranks) == 12 * 3
    assert len(set(ranks)) > 1
    # Two layers of four 64x64, a 64x128 and a 128x64; rank * (in + out + 1) numbers each.
    assert figures["initial_parameters"] == 2 * 6 * (4 * 129 + 2 * 193)
    sizes = {"intermediate.dense": 193, "output.dense": 193, "attention.output.dense": 129}
    by_name = {name: next((n for end, n in sizes.items() if name.endswith(end)), 129) for name in figures["ranks"]}
    by_name |= {name: 129 for name in by_name if "attention" in name}
    assert figures["effective_parameters"] == sum(rank * by_name[name] for name, rank in figures["ranks"].items())


def test_the_ranks_are_constant_after_the_last_pruning() -> None:
    method = METHOD.model_copy(update={"after_pruning": 0.5})
    model, optimizer = trained(method, 5)
    pruned = method.stats(model)["ranks"]
    steps(model, optimizer, range(6, 11), method)
    assert method.stats(model)["ranks"] == pruned


def test_the_penalty_equals_that_of_peft() -> None:
    model, _ = trained(until=3)
    plain = nn.functional.cross_entropy(logits(model).flatten(0, 1), LABELS.flatten())
    model.peft_config["default"].orth_reg_weight = METHOD.orthogonality
    with_penalty = model(**BATCH, labels=LABELS).loss
    penalty = METHOD.penalty(model)
    assert penalty is not None
    assert penalty > 0.1
    assert torch.allclose(with_penalty - plain, penalty, atol=1e-5)


def test_the_loss_of_the_model_excludes_the_penalty(tmp_path: Path) -> None:
    model, _ = trained()
    METHOD.save(model, tmp_path)
    for each in (model, METHOD.load(base(), tmp_path)):
        plain = nn.functional.cross_entropy(logits(each).flatten(0, 1), LABELS.flatten())
        assert torch.allclose(each(**BATCH, labels=LABELS).loss, plain)


def test_a_pruned_adapter_reloads_with_peft_alone(tmp_path: Path) -> None:
    from peft import PeftModel

    model, _ = trained()
    METHOD.save(model, tmp_path)
    assert (logits(METHOD.load(base(), tmp_path)) - logits(model)).abs().max() <= 1e-5
    alone = PeftModel.from_pretrained(base(), tmp_path)
    assert (logits(alone) - logits(model)).abs().max() <= 1e-5
    assert alone.peft_config["default"].orth_reg_weight == METHOD.orthogonality
    ranks = [p.shape[0] for name, p in alone.named_parameters() if ".lora_E." in name]
    assert ranks == list(METHOD.stats(model)["ranks"].values())


def test_a_checkpoint_from_before_the_pruning_is_saved_with_all_ranks(tmp_path: Path) -> None:
    model, optimizer = trained(until=3)
    early = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    steps(model, optimizer, range(4, STEPS + 1))
    with torch.no_grad():
        for name, tensor in early.items():
            model.get_parameter(name).copy_(tensor)
    METHOD.save(model, tmp_path)
    assert (logits(METHOD.load(base(), tmp_path)) - logits(model)).abs().max() <= 1e-5
    assert METHOD.stats(model)["final_rank"] > 3


def test_saving_during_training_changes_nothing(tmp_path: Path) -> None:
    model, optimizer = trained(until=6)
    before = copy.deepcopy(model.peft_config["default"])
    METHOD.save(model, tmp_path)
    assert model.peft_config["default"].rank_pattern == before.rank_pattern
    assert model.peft_config["default"].orth_reg_weight == before.orth_reg_weight
    steps(model, optimizer, range(7, STEPS + 1))
    assert torch.equal(logits(model), logits(trained()[0]))


@pytest.mark.parametrize("interruption", [3, 5, 8])
def test_resumed_it_continues_bit_identically(interruption: int) -> None:
    model, optimizer = trained(until=interruption)
    again = adapted()
    again.load_state_dict(model.state_dict())
    METHOD.load_state(again, METHOD.state(model))
    resumed = torch.optim.AdamW(METHOD.parameter_groups(again, 1e-2, 0.0))
    resumed.load_state_dict(optimizer.state_dict())
    steps(again, resumed, range(interruption + 1, STEPS + 1))
    assert torch.equal(logits(again), logits(trained()[0]))


def test_the_phases_scale_with_the_number_of_steps() -> None:
    config = adapted(AdaLora(before_pruning=0.2, after_pruning=0.3), steps=50).peft_config["default"]
    assert (config.total_step, config.tinit, config.tfinal) == (50, 10, 15)


@pytest.mark.parametrize("number", [1, 2])
def test_a_run_too_short_to_prune_is_refused(number: int) -> None:
    with pytest.raises(UserError, match=f"AdaLoRA has {number} optimizer step.*train for longer"):
        adapted(AdaLora(before_pruning=0.5), number)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"initial_rank": 8, "target_rank": 8}, "8 is not below initial_rank 8"),
        ({"before_pruning": 0.5, "after_pruning": 0.5}, "no steps left to prune in"),
    ],
)
def test_settings_without_pruning_are_refused(settings: dict[str, Any], found: str) -> None:
    with pytest.raises(ValidationError, match=found):
        AdaLora(**settings)
