"""The attention kernel: chosen by a measurement, stored, and obeyed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from peftlab.errors import UserError
from peftlab.loading import attention
from peftlab.loading.attention import Shape, choose_attention, current_attention, measure, use_attention
from peftlab.training.settings import Training

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PEFTLAB_CACHE", str(tmp_path))
    return tmp_path / "attention"


def model(architecture: str = "bert", **sizes: Any) -> Any:
    shape = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.AutoConfig.for_model(architecture, vocab_size=50, **{**shape, **sizes})
    return transformers.AutoModel.from_config(config)


def chosen(base: Any, lengths: list[int], **training: Any) -> str | None:
    return choose_attention(base, Training(batch_examples=4, **training), lengths, "float32", CPU)


@pytest.mark.parametrize(("seconds", "kernel"), [((1.0, 1.3), "eager"), ((1.0, 1.1), "sdpa"), ((2.0, 1.0), "sdpa")])
def test_eager_attention_must_be_clearly_faster(
    seconds: tuple[float, float], kernel: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "measure", lambda shape, dtype: dict(zip(("eager", "sdpa"), seconds, strict=True)))
    assert chosen(model(), [20] * 8) == kernel


def test_a_second_run_takes_the_choice_of_the_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "measure", lambda shape, dtype: {"eager": 1.0, "sdpa": 2.0})
    assert chosen(model(), [20] * 8) == "eager"
    monkeypatch.setattr(attention, "measure", lambda shape, dtype: {"eager": 2.0, "sdpa": 1.0})
    assert chosen(model(), [30] * 8) == "eager"  # 32 tokens, rounded up, like 20
    assert chosen(model(), [40] * 8) == "sdpa"
    stored = sorted(json.loads(path.read_text())["tokens"] for path in cache.iterdir())
    assert stored == [32, 64]


def test_a_measurement_times_both_kernels_on_the_median_batch(cache: Path) -> None:
    assert chosen(model(), [9, 9, 9, 9, 50, 9, 9, 9, 9, 9, 9, 9]) in {"eager", "sdpa"}
    (path,) = cache.iterdir()
    values = json.loads(path.read_text())
    assert {key: values[key] for key in ("rows", "heads", "tokens", "width")} == {
        **{"rows": 4, "heads": 4, "tokens": 16, "width": 16}
    }
    assert all(seconds > 0 for seconds in values["seconds"].values())
    assert set(measure(Shape(rows=2, heads=2, tokens=8, width=8), torch.bfloat16)) == {"eager", "sdpa"}


def test_no_kernel_is_chosen_where_its_memory_or_the_model_forbids(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "measure", lambda shape, dtype: {"eager": 1.0, "sdpa": 9.0})
    longest = 34 * 16 // 5  # width 16
    assert chosen(model(), [20] * 7 + [longest]) == "eager"
    assert chosen(model(), [20] * 7 + [longest + 1]) is None
    assert choose_attention(model(), Training(), [20], "float32", torch.device("cuda")) is None
    deberta = model("deberta-v2", pos_att_type=[])
    assert current_attention(deberta) == "eager"
    assert chosen(deberta, [20] * 8) is None


def test_the_two_kernels_compute_the_same() -> None:
    base = model().eval()
    ids = torch.arange(1, 25).reshape(2, 12)
    mask = torch.ones_like(ids)
    mask[0, 8:] = 0
    outputs = {}
    for kernel in ("eager", "sdpa"):
        use_attention(base, kernel)
        assert current_attention(base) == kernel
        outputs[kernel] = base(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
    torch.testing.assert_close(outputs["eager"], outputs["sdpa"], rtol=1e-4, atol=1e-5)
    assert not torch.equal(outputs["eager"], outputs["sdpa"])  # the switch has an effect


def test_a_kernel_that_the_architecture_lacks_is_refused() -> None:
    with pytest.raises(UserError, match=r"training.attention: deberta-v2 has no sdpa attention"):
        use_attention(model("deberta-v2", pos_att_type=[]), "sdpa")
