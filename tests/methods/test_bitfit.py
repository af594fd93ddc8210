"""BitFit trains every bias and nothing else of the base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from peftlab.errors import UserError
from peftlab.methods.bitfit import BitFit
from peftlab.methods.method import MethodContext
from tests.contract import bases
from tests.contract.bases import tiny
from tests.methods.tiny_bert import TAGS, TEXT, bert, logits, trainable


def test_bitfit_trains_every_bias_and_no_weight() -> None:
    base = bert()
    biases = {name for name, _ in base.named_parameters() if name.endswith(".bias")}
    assert set(trainable(BitFit().apply(base, TAGS))) == biases | {"classifier.weight"}


def test_bitfit_trains_biases_outside_of_linear_layers() -> None:
    model = BitFit().apply(tiny("deberta", "AutoModelForTokenClassification", num_labels=3), TAGS)
    of_attention = {name for name in trainable(model) if ".0.attention.self." in name}
    assert {name.rpartition(".")[2] for name in of_attention} == {"q_bias", "v_bias"}


@pytest.mark.parametrize(
    "architecture",
    [
        *("cohere2", "gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "mixtral", "modernbert", "mt5"),
        *("olmo2", "phi3", "qwen3", "smollm3", "t5"),
    ],
)
def test_a_base_without_biases_is_refused(architecture: str) -> None:
    reason = BitFit().incompatible_with(
        MethodContext(architecture=architecture, quantization="none", task_type="CAUSAL_LM")
    )
    assert reason is not None
    assert architecture in reason
    base = tiny(architecture, "AutoModel", num_labels=3)
    with pytest.raises(UserError, match="has none"):
        BitFit().apply(base, TEXT)


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_in_bfloat16_over_a_quantized_base_biases_stay_float32(precision: str, tmp_path: Path) -> None:
    bases.make_bases(tmp_path)
    method = BitFit()
    model = method.apply(bases.load(tmp_path, "encoder", precision), TAGS)
    optimizer = torch.optim.AdamW(method.parameter_groups(model, 1e-2, 0.0))
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            bases.loss(model.train()(**bases.inputs("encoder")), "encoder").backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        expected = logits(model)
    assert {p.dtype for p in trainable(model).values()} == {torch.float32}
    (tmp_path / "saved").mkdir()
    method.save(model, tmp_path / "saved")
    loaded = method.load(bases.load(tmp_path, "encoder", precision), tmp_path / "saved")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits(loaded), expected)
