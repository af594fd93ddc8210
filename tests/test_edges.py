"""Edges."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors

from peftlab import hub
from peftlab.data.readers import lines, read_json
from peftlab.devices.zero import _move_the_rest
from peftlab.models.model import Model
from peftlab.paper.findings import _ground
from peftlab.part import BadInput
from peftlab.results import Environment
from peftlab.runs.processes import _check_gpus
from peftlab.training import out_of_memory
from peftlab.training.batching import shares


def test_what_follows_an_array_is_not_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"},\n {"text": "b"}]\n[{"text": "c"}]\n')
    with pytest.raises(BadInput, match=r"a\.json:2: not JSON: the array ends here, and something follows it"):
        read_json(path)


def test_a_line_that_is_too_long_by_its_end_alone_takes_no_other_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "LONGEST_LINE", 8)
    path = tmp_path / "a.txt"
    path.write_text("12345678\nnext\n123456789\nlast\n")
    found = [(line.number, line.text, line.fault is None) for line in lines.read_lines(path)]
    assert found == [(1, "", False), (2, "next\n", True), (3, "", False), (4, "last\n", True)]


def test_a_network_that_breaks_off_is_the_hub_s_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **settings: object) -> str:
        raise errors.HTTPError("peer closed connection")  # type: ignore[attr-defined]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    with pytest.raises(hub.Unreachable, match="peer closed connection"):
        hub.snapshot("a/b", revision=None, patterns=["*"])


def test_a_chat_template_of_its_own_file_is_part_of_a_base(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    before = Model(id=str(tmp_path)).files().fingerprint
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert Model(id=str(tmp_path)).files().fingerprint != before


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ({}, "4 threads, float32"),
        ({"processes": 2}, "2 processes, float32"),
        ({"processes": 2, "zero": 2}, "2 processes under ZeRO-2, float32"),
        ({"processes": 2, "zero": 3, "sharded": True}, "under ZeRO-3 with a share of the model each, float32"),
        ({"device_map": "auto"}, "layers on several GPUs (auto), float32"),
    ],
)
def test_where_runs_are_compared_no_placement_is_like_another(place: dict[str, Any], says: str) -> None:
    hardware = {"processor": "P", "cores": 4, "threads": 4, "memory_bytes": 1, "accelerators": [], "driver": None}
    environment = Environment.model_validate(
        {"code": {"commit": None, "modified": None}, "python": "3", "libraries": {}, "hardware": hardware}
        | {"device": "cpu", "precision": "float32", "processes": 1, **place}
    )
    assert _ground(environment).endswith(says)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "NCCL error: Cuda failure 2 'out of memory'",
        "NCCL error: Cuda failure 'out of memory'",
    ],
)
def test_want_of_memory_is_known_by_each_of_cuda_s_words(text: str) -> None:
    assert out_of_memory.caused(RuntimeError(text))
    assert not out_of_memory.caused(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_more_processes_than_gpus_are_refused() -> None:
    with pytest.raises(BadInput, match=r"asked for 2 processes, and there is 1 GPU here.*--num_processes 1"):
        _check_gpus(2, 1)


def test_what_zero_leaves_behind_is_moved() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    model[1].register_buffer("passing", torch.zeros(2), persistent=False)
    _move_the_rest(model, torch.device("meta"))
    assert {buffer.device.type for buffer in model.buffers()} == {"meta"}
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert "1.passing" not in model.state_dict()


def test_the_lengths_of_the_data_are_not_counted_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from peftlab.training.gradients import Gradients

    given: list[object] = []
    monkeypatch.setattr(
        "peftlab.training.gradients.shares", lambda b, lengths, n: given.append(lengths) or shares(b, lengths, n)
    )
    counted = [3, 1, 2]
    of = SimpleNamespace(accelerator=SimpleNamespace(num_processes=1), lengths=counted)
    Gradients._parts(of, [0, 1, 2], 2)  # type: ignore[arg-type]
    assert given[0] is counted
