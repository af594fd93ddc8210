"""Stored facts about architectures agree with a trace of a tiny model."""

from __future__ import annotations

import pytest
from torch import nn

from peftlab.models.fact_types import expression, from_json, matching, to_json
from peftlab.models.facts import facts_of, learn, stored
from peftlab.models.trace import architecture as tracing
from peftlab.models.trace import branches
from peftlab.models.trace.architecture import Probe, trace
from peftlab.models.trace.kept import KEPT
from peftlab.models.trace.sublayers import layers_of, sums_of

QUICK = ["gpt2"]
SLOW = ["bart", "bert", "deberta-v2", "falcon", "gpt_oss", "longformer", "mamba2", "modernbert", "qwen3_moe", "t5"]


def marked(name: str) -> object:
    if name in QUICK:
        return name
    return pytest.param(name, marks=pytest.mark.slow if name in SLOW else pytest.mark.night)


@pytest.mark.parametrize("architecture", [marked(name) for name in sorted(stored())])
def test_stored_facts_agree_with_a_trace(architecture: str) -> None:
    traced = trace(architecture)
    expected = KEPT[architecture](traced) if architecture in KEPT else traced
    assert to_json(stored()[architecture]) == to_json(expected)


@pytest.mark.parametrize("architecture", sorted(KEPT.keys() - {"nemotron_h"}))
def test_a_kept_name_is_at_the_place_that_the_trace_finds(architecture: str) -> None:
    config = tracing.tiny_config(architecture)
    probe = Probe(config, tracing.tasks_of(config)[0])
    sums = sums_of(probe.recording, layers_of(probe.model, probe.recording))
    names = [name for name, _ in probe.model.named_modules()]
    facts = stored()[architecture]
    for sublayer, of_kind in (
        (facts.attention[0], [each for each in sums if each.mixes]),
        (facts.feed_forward[0], [each for each in sums if not each.mixes and not each.crosses]),
    ):
        ends = matching(names, [f"{layer}.{sublayer.hidden}" for layer in sublayer.layers])
        assert len(ends) == len(of_kind) == (4 if config.is_encoder_decoder else 2)
        assert all(any(end in each.ends for each in of_kind) for end in ends)
        if sublayer.residual is not None:
            readers = matching(names, [f"{layer}.{sublayer.residual}" for layer in sublayer.layers])
            assert all(any(reader in each.readers for each in of_kind) for reader in readers)


def test_facts_survive_their_json_form() -> None:
    assert all(from_json(to_json(facts)) == facts for facts in stored().values())


def test_an_unknown_architecture_is_a_fact_with_a_reason() -> None:
    facts = facts_of("bert_of_tomorrow")
    assert facts.feed_forward == ()
    assert "transformers has no architecture 'bert_of_tomorrow'" in facts.reason("feed_forward")


def test_a_config_tells_what_the_defaults_of_its_architecture_cannot() -> None:
    assert "ministral" not in stored()  # its default head_dim is None, with which nothing can be built
    assert facts_of("ministral").feed_forward == ()
    learn({"model_type": "ministral", "head_dim": 128, "hidden_size": 4096, "num_attention_heads": 32})
    assert facts_of("ministral").feed_forward[0].hidden == "mlp"


def test_a_base_that_keeps_states_of_the_batch_before_takes_no_prefix() -> None:
    assert trace("recurrent_gemma").no_prefix == {"CAUSAL_LM": "its modules then keep states of the batch before"}


def test_a_weight_that_is_read_directly_is_distinguished_from_one_whose_dtype_is_asked_for() -> None:
    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out_proj = nn.Linear(2, 2)
            self.wo = nn.Linear(2, 2)

        def forward(self, x):  # type: ignore[no-untyped-def]
            if isinstance(self.wo.weight, nn.Parameter) and x.dtype != self.wo.weight.dtype:
                x = x.to(self.wo.weight.dtype)
            return self.kernel(
                self.wo(x),
                outproj_weight=self.out_proj.weight,
                outproj_bias=self.out_proj.bias,
            )

    assert branches.reads_weight(Direct, "out_proj")
    assert not branches.reads_weight(Direct, "wo")


def test_a_number_in_a_pattern_is_a_whole_part_of_a_name() -> None:
    assert expression("h.#.mlp") == r"h\.\d+\.mlp"
    assert matching(["transformer.h.0.mlp", "transformer.h.0.mlp.c_fc", "path.0.mlp"], ["h.#.mlp"]) == [
        "transformer.h.0.mlp"
    ]
