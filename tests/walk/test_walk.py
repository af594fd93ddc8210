"""Every architecture works or is refused with a true reason: a sample here, all of them by `make test-walk`."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from pathlib import Path

import pytest

from peftlab.doctor import compatibility, limits
from peftlab.doctor.reasons import REFUSALS, _faults
from peftlab.doctor.walk import CELLS, METHODS_TRIED, Outcome, architectures, judged, walk
from tests.sampling import slow_after

# One architecture of each family: dense decoder, experts, latent attention, state space and linear attention,
# multimodal, encoder, encoder-decoder.
FAMILIES = (
    *(
        "qwen3",
        "mixtral",
        "deepseek_v3",
        "mamba2",
        "qwen3_next",
        "gemma3",
        "bert",
        "bart",
        "gpt_oss",
        "modernbert",
        "big_bird",
    ),
)


@pytest.mark.parametrize("architecture", slow_after(1, FAMILIES))
def test_an_architecture_works_or_is_refused_with_a_true_reason(architecture: str) -> None:
    cells = CELLS[:1] if architecture == FAMILIES[0] else [(method, "none") for method in METHODS_TRIED]
    ((name, outcomes),) = walk([architecture], cells)
    assert name == architecture
    assert [outcome for outcome in map(judged, outcomes) if outcome.kind == "fails"] == []
    assert any(outcome.kind == "works" for outcome in outcomes)


def test_every_text_architecture_of_transformers_is_walked() -> None:
    tasks = architectures()
    assert len(tasks) == 255
    assert {fault["architecture"] for fault in _faults()} <= tasks.keys()
    assert tasks["t5"][0] == "seq2seq"
    assert tasks["llama"][0] == "causal_lm"


def test_a_refusal_without_a_true_reason_fails() -> None:
    cell = Outcome("olmo2", "causal_lm", "ia3", "none", "refused", "unknown architecture 'olmo2'; known are llama")
    assert judged(cell).kind == "fails"
    true = dataclasses.replace(
        cell, method="bitfit", detail="BitFit trains biases, and olmo2 has none; use lora or ia3"
    )
    assert (judged(true).kind, judged(true).detail) == ("refused", "BitFit trains biases, and it has none")


def test_a_known_fault_is_no_failure_and_another_error_is_one() -> None:
    fault = Outcome("esm", "causal_lm", "", "", "fails", "TypeError: found element of type NoneType at pos 0")
    assert judged(fault).kind == "upstream"
    assert judged(dataclasses.replace(fault, detail="TypeError: another")).kind == "fails"
    assert judged(dataclasses.replace(fault, architecture="llama")).kind == "fails"


def test_patterns_of_reasons_are_valid_and_none_takes_every_message() -> None:
    for pattern in REFUSALS.values():
        assert re.search(pattern, "unknown architecture") is None


def test_a_child_that_does_not_end_is_killed_and_one_that_raises_says_why() -> None:
    late = limits.run_in_fork(lambda: time.sleep(60), seconds=0.2)  # type: ignore[func-returns-value,arg-type]
    assert (late.value, late.error) == (None, "not done after 0.2 s")
    assert "ZeroDivisionError" in (limits.run_in_fork(lambda: {"x": 1 // 0}, seconds=60).error or "")
    assert limits.run_in_fork(lambda: {"x": 1}, seconds=60).value == {"x": 1}
    died = limits.run_in_fork(lambda: os._exit(3), seconds=60)
    assert died.error == "the process died with status 768"


def test_a_child_above_the_memory_limit_fails() -> None:
    def allocate() -> dict[str, int]:
        limits.limit_memory(64 << 20)
        return {"x": len(bytes(256 << 20))}

    assert limits.run_in_fork(allocate, seconds=60).error == "MemoryError"


def test_a_walk_resumes_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "outcomes.jsonl"
    names = {"albert": ["token_classification"], "llama": ["causal_lm"]}
    monkeypatch.setattr(compatibility, "architectures", lambda: names)
    tried: list[str] = []

    def small_walk(names: list[str]):  # type: ignore[no-untyped-def]
        for name in names:
            tried.append(name)
            yield name, [Outcome(name, "causal_lm", "lora", "none", "works")]

    monkeypatch.setattr(compatibility, "walk", small_walk)
    compatibility.try_all(store=store, shard=(1, 2), say=lambda line: None)
    assert tried == ["albert"]
    outcomes = compatibility.try_all(store=store, say=lambda line: None)
    assert tried == ["albert", "llama"]
    assert compatibility.read(store) == outcomes


def test_the_table_has_a_line_for_each_architecture_and_folds_the_reasons() -> None:
    outcomes = [
        *(Outcome("bert", "token_classification", method, "none", "works") for method in METHODS_TRIED),
        Outcome("bert", "causal_lm", "", "", "refused", "task: bert sees the tokens after the one it predicts"),
        Outcome("esm", "token_classification", "", "", "fails", "found element of type NoneType"),
    ]
    text = compatibility.document(outcomes)
    assert "| bert | token_classification | + | + | + | + | + | + | + | causal_lm - |" in text
    assert "- it sees later tokens: no causal language model: bert" in text
    assert "- the default config has no vocab_size: esm" in text
    assert "253 architectures have not been tried yet." in text
