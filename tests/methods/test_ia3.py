"""(IA)3 scales keys, values and the feed-forward block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from peftlab.errors import UserError
from peftlab.methods import TrainingPlan
from peftlab.methods.ia3 import Ia3
from peftlab.methods.method import MethodContext
from tests.contract.bases import tiny
from tests.methods.adapters import perturb
from tests.methods.tiny_bert import TAGS, bert, logits, trainable


def test_ia3_scales_keys_values_and_the_feed_forward_block_alone() -> None:
    model = Ia3().apply(bert(), TAGS)
    scales = {name.partition("layer.1.")[2]: p.numel() for name, p in trainable(model).items() if ".layer.1." in name}
    assert scales == {
        "attention.self.key.ia3_l.default": 64,
        "attention.self.value.ia3_l.default": 64,
        "output.dense.ia3_l.default": 128,
    }
    assert torch.equal(logits(model), logits(bert()))


FUSED = ["bloom", "falcon", "gpt2", "gpt_neox", "modernbert", "phi3"]  # queries, keys and values in one projection
SCALED = [
    *FUSED,
    *("albert", "bart", "bert", "camembert", "deberta-v2", "distilbert", "electra", "gemma", "gemma2", "gemma3_text"),
    *("llama", "mbart", "mistral", "mt5", "opt", "phi", "qwen2", "qwen3", "roberta", "t5", "xlm-roberta"),
    *("cohere2", "exaone4", "granite", "mpnet", "olmo2", "roformer", "starcoder2"),
]


@pytest.mark.parametrize("architecture", SCALED)
def test_ia3_finds_its_modules_in_every_known_architecture(architecture: str) -> None:
    own: dict[str, Any] = {"n_layers": 2, "n_heads": 4, "dim": 64} if architecture == "distilbert" else {}
    if architecture in ("t5", "mt5"):
        own = {"num_layers": 2, "num_decoder_layers": 2}
    if architecture in ("bart", "mbart"):
        own = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    if architecture == "albert":
        own = {"num_hidden_groups": 2}
    model = Ia3().apply(
        tiny(architecture, "AutoModel", **own), TrainingPlan(optimizer_steps=4, task_type="FEATURE_EXTRACTION")
    )
    count = len(trainable(model))
    blocks = {"bart": 6, "mbart": 6, "t5": 6, "mt5": 6}.get(architecture, 2)  # an attention over the encoder's output
    feed_forward = 4 if blocks == 6 else 2
    assert count == blocks * (1 if architecture in FUSED else 2) + feed_forward


def test_ia3_scales_are_not_decayed_towards_zero() -> None:
    method = Ia3()
    model = method.apply(bert(), TAGS)
    optimizer = torch.optim.AdamW(method.parameter_groups(model, 1e-2, 0.5))
    for p in trainable(model).values():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert all(torch.equal(p, torch.ones_like(p)) for name, p in trainable(model).items() if "ia3" in name)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trainable(model))


def test_ia3_without_attention_requires_module_names() -> None:
    context = MethodContext(architecture="fnet", quantization="none", task_type="SEQ_CLS")  # Fourier transforms
    reason = Ia3().incompatible_with(context)
    assert reason is not None
    assert "set targets" in reason
    named = Ia3(targets=["intermediate.dense"])
    assert named.incompatible_with(context) is None
    base = tiny("fnet", "AutoModelForTokenClassification", num_labels=3)
    assert len(trainable(named.apply(base, TAGS))) == 2 + 2  # and the head
    with pytest.raises(UserError, match=r"method.targets: 'nowhere' matches no linear layer"):
        Ia3(targets=["nowhere"]).apply(tiny("fnet", "AutoModelForTokenClassification"), TAGS)


def test_ia3_merges_with_a_head_of_several_layers() -> None:
    def base() -> PreTrainedModel:
        return tiny("modernbert", "AutoModelForTokenClassification", num_labels=3)

    method = Ia3()
    plan = TrainingPlan(optimizer_steps=4, task_type="TOKEN_CLS", head=("head", "classifier"))
    model = perturb(method.apply(base(), plan)).eval()
    expected = logits(model)
    assert not torch.allclose(expected, logits(base()), atol=1e-2)
    assert torch.allclose(logits(method.merge(model)), expected, atol=1e-5)
