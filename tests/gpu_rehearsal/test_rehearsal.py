"""Runs on a simulated GPU: placement, dtypes and host synchronization. Nothing here runs on a GPU."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peftlab.methods import METHODS
from tests.gpu_rehearsal import simulated_cuda

FAMILIES = ("bert", "llama", "t5")
QUANTIZATIONS = ("none", "nf4", "int8")
ALWAYS = [
    (FAMILIES[(row + column) % 3], method, quantization)
    for row, method in enumerate(("lora", "adalora", "prefix_tuning", "adapter"))
    for column, quantization in enumerate(QUANTIZATIONS)
]
ALL = [
    (base, method, quantization, sample)
    for base, quantization in itertools.product((*FAMILIES, "bert-qa", "bert-text"), QUANTIZATIONS)
    for method in METHODS
    for sample in range(len(METHODS[method].test_settings))
]
LORA = {"base": "bert", "method": "lora", "quantization": "none"}
HOST_WAITS = 6
"""Budget: times that the host waits for the GPU in one optimizer step of LoRA over BERT. Lower it with the waits."""

pytestmark = pytest.mark.skipif(
    "+cu" in importlib.metadata.version("torch") or sys.platform != "linux", reason="simulates CUDA in a CPU build"
)


class Rehearsal:
    """The server of simulated GPUs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the server ended; its error is above"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def call(
        self, function: str, folder: Path, *, gpus: int = 1, bfloat16: bool = True, plant: str = "", **settings: Any
    ) -> dict[str, Any]:
        """`{"value"}` of a function of walk.py in a process of its own, or `{"error"}`."""
        request = {"function": function, "arguments": {"folder": str(folder), **settings}}
        request |= {"gpus": gpus, "bfloat16": bfloat16, "plant": plant}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def value(self, function: str, folder: Path, **settings: Any) -> Any:
        answer = self.call(function, folder, **settings)
        assert "value" in answer, answer["error"]
        return answer["value"]


@pytest.fixture(scope="module")
def gpu() -> Iterator[Rehearsal]:
    """Skips with the compiler's message if the device does not build here."""
    words = [sys.executable, "-m", "tests.gpu_rehearsal.server"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    root = Path(__file__).parent.parent.parent
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, env=environment
    ) as process:
        rehearsal = Rehearsal(process)
        started = rehearsal.answer()
        if "skip" in started:
            pytest.skip(f"the simulated GPU does not build: {started['skip']}")
        yield rehearsal
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.parametrize(("base", "method", "quantization"), ALWAYS)
def test_a_run_trains_reloads_predicts_and_merges_on_cuda(
    gpu: Rehearsal, tmp_path: Path, base: str, method: str, quantization: str
) -> None:
    done = gpu.value("walk", tmp_path, base=base, method=method, quantization=quantization)
    assert done["devices"] == ["cuda:0"], done
    assert (done["precision"], len(done["losses"]), done["answers"]) == ("bfloat16", 4, 3)
    assert (done["merged"] is not None) == METHODS[method].merges


@pytest.mark.slow
@pytest.mark.parametrize(("base", "method", "quantization", "sample"), ALL)
def test_every_run_works_on_cuda_or_is_refused(
    gpu: Rehearsal, tmp_path: Path, base: str, method: str, quantization: str, sample: int
) -> None:
    done = gpu.value("walk", tmp_path, base=base, method=method, quantization=quantization, sample=sample)
    assert "refused" in done or done["devices"] == ["cuda:0"]


def test_float32_losses_equal_those_of_the_cpu_to_the_bit(gpu: Rehearsal, tmp_path: Path) -> None:
    exact = {**LORA, "precision": "float32", "attention": "eager"}
    (tmp_path / "gpu").mkdir()
    (tmp_path / "cpu").mkdir()
    on_gpu = gpu.value("walk", tmp_path / "gpu", **exact)
    on_cpu = gpu.value("walk", tmp_path / "cpu", gpus=0, device="cpu", **exact)
    assert (on_gpu["devices"], on_cpu["devices"]) == (["cuda:0"], ["cpu"])
    assert on_gpu["losses"] == on_cpu["losses"]


def test_a_gpu_without_bfloat16_computes_in_float32(gpu: Rehearsal, tmp_path: Path) -> None:
    assert gpu.value("walk", tmp_path, bfloat16=False, **LORA, precision="auto")["precision"] == "float32"


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_prefix_in_a_decoder_is_refused_under_a_device_map(gpu: Rehearsal, tmp_path: Path, quantization: str) -> None:
    settings = {"base": "t5", "method": "prefix_tuning", "quantization": quantization}
    done = gpu.value("walk", tmp_path, gpus=2, device_map="balanced", **settings)
    assert "PEFT places a prefix by the encoder's layers" in done["refused"]


def test_a_device_map_places_layers_on_both_gpus(gpu: Rehearsal, tmp_path: Path) -> None:
    settings = {"base": "llama", "method": "lora", "quantization": "none"}
    done = gpu.value("walk", tmp_path, gpus=2, device_map="balanced", **settings)
    assert done["devices"] == ["cuda:0", "cuda:1"], done


def test_a_run_killed_on_cuda_resumes_to_the_same_losses(gpu: Rehearsal, tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = gpu.value("train", tmp_path / "whole", **LORA)
    killed = gpu.call("train", tmp_path / "killed", plant="plant_kill", **LORA)
    assert "Interrupted: terminated" in killed["error"]
    assert gpu.value("train", tmp_path / "killed", resume=True, **LORA) == whole[2:]


def test_a_step_waits_for_the_gpu_no_more_often_than_the_budget(gpu: Rehearsal, tmp_path: Path) -> None:
    waits = gpu.value("host_waits", tmp_path, **LORA)
    assert sum(waits.values()) == HOST_WAITS, waits


@pytest.mark.parametrize(("plant", "method"), [("plant_eye_without_device", "adalora"), ("plant_batch_on_cpu", "lora")])
def test_a_tensor_on_the_wrong_device_fails_the_rehearsal(
    gpu: Rehearsal, tmp_path: Path, plant: str, method: str
) -> None:
    answer = gpu.call("walk", tmp_path, plant=plant, **{**LORA, "method": method})
    assert "Expected all tensors to be on the same device" in answer["error"]


def test_a_wait_added_to_the_step_exceeds_the_budget(gpu: Rehearsal, tmp_path: Path) -> None:
    waits = gpu.value("host_waits", tmp_path, plant="plant_item_in_step", **LORA)
    assert sum(waits.values()) == HOST_WAITS + 1, waits


def test_a_source_that_does_not_compile_gives_the_compilers_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "broken.cpp"
    source.write_text("int main( {")
    monkeypatch.setattr(simulated_cuda, "SOURCE", source)
    monkeypatch.setattr(simulated_cuda, "CACHE", tmp_path)
    with pytest.raises(simulated_cuda.CannotBuildError, match=r"broken\.cpp:1|no g\+\+"):
        simulated_cuda.build()
