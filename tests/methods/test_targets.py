"""Selection of layers: names, patterns, exclusions, and layers that no adapter can train."""

from __future__ import annotations

import pytest
import torch

from peftlab.errors import UserError
from peftlab.methods import TrainingPlan
from peftlab.methods.adalora import AdaLora
from peftlab.methods.lora import Lora
from peftlab.methods.targets import chosen_layers, left_out_remark
from tests.contract.bases import tiny
from tests.methods.tiny_bert import TAGS, bert, trainable

HEAD = ("classifier",)


def last(names: list[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


def test_a_pattern_selects_a_subtree_and_an_exclusion_takes_a_part_of_it_away() -> None:
    base = bert()
    assert chosen_layers(base, ["encoder.layer.0.*"], HEAD) == [
        name for name in chosen_layers(base, "all-linear", HEAD) if ".layer.0." in name
    ]
    assert last(chosen_layers(base, ["attention.self.*"], HEAD)) == {"query", "key", "value"}
    assert last(chosen_layers(base, ["attention.self.*"], HEAD, exclude=["key"])) == {"query", "value"}
    assert chosen_layers(base, "all-linear", HEAD, exclude=["layer.1.*"]) == chosen_layers(base, ["layer.0.*"], HEAD)
    method = Lora(rank=2, targets=["self.*"], exclude=["key"])
    adapted = {name.partition(".lora_")[0].rpartition(".")[2] for name in trainable(method.apply(base, TAGS))}
    assert adapted - {"default"} >= {"query", "value"}
    assert "key" not in adapted


@pytest.mark.parametrize("key", ["targets", "exclude"])
def test_a_pattern_without_a_match_is_refused_with_the_nearest_name(key: str) -> None:
    settings = {"targets": ["atention.self.*"]} if key == "targets" else {"exclude": ["quary"]}
    with pytest.raises(UserError, match=rf"method\.{key}: .* matches no linear layer.*available are: query x2"):
        Lora(**settings).apply(bert(), TAGS)
    with pytest.raises(UserError, match=r"'quary' matches no linear layer \(did you mean 'query'\?\)"):
        chosen_layers(bert(), "all-linear", HEAD, exclude=["quary"])


def test_an_exclusion_of_everything_is_refused() -> None:
    with pytest.raises(UserError, match=r"method\.targets: no layer is left to adapt"):
        chosen_layers(bert(), ["query"], HEAD, exclude=["*"])


def test_all_linear_leaves_out_what_the_task_does_not_run_and_says_so() -> None:
    base = tiny("longformer", "AutoModelForTokenClassification", attention_window=4)
    plan = TrainingPlan(optimizer_steps=4, task_type="TOKEN_CLS", head=HEAD)
    assert not any(name.endswith("_global") for name in chosen_layers(base, "all-linear", HEAD, task_type="TOKEN_CLS"))
    remark = left_out_remark(base, HEAD, "TOKEN_CLS")
    assert remark is not None
    assert remark.startswith("6 linear layers left out, e.g. longformer.encoder.layer.0.attention.self.query_global")
    with pytest.raises(UserError, match=r"'query_global' cannot be adapted: .*: the task does not run it"):
        Lora(targets=["query_global"]).apply(base, plan)
    # a classifier of sequences gives its first token global attention
    assert left_out_remark(base, HEAD, "SEQ_CLS") == (  # and reads that token alone from the last layer
        "3 linear layers left out, e.g. longformer.encoder.layer.1.attention.self.query: it gets no gradient"
    )


def test_what_only_the_last_layer_does_not_train_is_left_out_there_at_any_depth() -> None:
    base = tiny("lilt", "AutoModelForTokenClassification", num_hidden_layers=3)
    chosen = chosen_layers(base, "all-linear", HEAD, task_type="TOKEN_CLS")
    layout = [name for name in chosen if name.endswith("attention.layout_output.dense")]
    assert layout == [f"lilt.encoder.layer.{layer}.attention.layout_output.dense" for layer in (0, 1)]


def test_a_projection_that_a_fused_kernel_reads_is_left_out() -> None:
    sizes = {"hidden_size": 64, "num_heads": 16, "head_dim": 8, "state_size": 16, "n_groups": 1, "expand": 2}
    base = tiny("mamba2", "AutoModelForCausalLM", **sizes)
    assert last(chosen_layers(base, "all-linear", (), task_type="CAUSAL_LM")) == {"in_proj"}
    remark = left_out_remark(base, (), "CAUSAL_LM")
    assert remark is not None
    assert "out_proj: Mamba2Mixer reads its weight directly" in remark


def test_adalora_names_a_layer_without_a_gradient() -> None:
    method = AdaLora(initial_rank=4, target_rank=2, targets=["query", "key"])
    model = method.apply(bert(), TrainingPlan(optimizer_steps=20, task_type="TOKEN_CLS", head=HEAD))
    for name, p in model.named_parameters():
        if p.requires_grad and ".0.attention.self.key." not in name:
            p.grad = torch.ones_like(p)
    with pytest.raises(UserError, match=r"1 of the layers that AdaLoRA adapts get no gradient, e\.g\. bert\."):
        method.after_step(model, 3)
