"""GPUs: one process at a time has each, and nothing that initializes CUDA is imported before a fork. Needs no GPU."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from peftlab.distributed.deepspeed import _move_buffers
from peftlab.errors import UserError
from peftlab.runs.launch import _check_gpus
from peftlab.suites import gpus, matching, run_jobs, workers
from peftlab.suites.claims import Claims
from peftlab.suites.gpus import Slots, gpu_slots
from peftlab.suites.run_jobs import bench
from peftlab.suites.scheduler import Options
from peftlab.suites.store import Record
from tests.suites.tiny import GRID, write_suite


def test_two_runners_never_have_the_same_slot(tmp_path: Path) -> None:
    first, second = (
        Slots(gpu_slots(["4", "5", "6", "7", "8"], 2), Claims(tmp_path / "claims", lease=60)) for _ in range(2)
    )
    assert len(first) == 2  # one is left over
    one, two = first.take(), second.take()
    assert one is not None
    assert two is not None
    assert (one.environment, two.environment) == ({"CUDA_VISIBLE_DEVICES": "4,5"}, {"CUDA_VISIBLE_DEVICES": "6,7"})
    assert first.take() is second.take() is None
    first.give_back(one)
    assert second.take() == one


def test_the_slots_of_a_dead_runner_are_free_again(tmp_path: Path) -> None:
    dead, alive = (Slots(gpu_slots(["0"], 1), Claims(tmp_path / "claims", lease=lease)) for lease in (0.01, 60))
    assert dead.take() is not None
    time.sleep(0.05)
    assert alive.take() is not None


def test_each_run_sees_its_own_gpu_and_no_more_run_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()

    def run(recipe: object, folder: Path, threads: int) -> None:
        mine = seen / os.environ["CUDA_VISIBLE_DEVICES"]
        mine.touch(exist_ok=False)  # nobody else has it now
        time.sleep(0.3)
        mine.rename(seen / f"{mine.name}-{os.getpid()}")
        workers.leave(folder, Record(state="failed", reason="made up", recipe=recipe.model_dump(mode="json")))  # type: ignore[attr-defined]

    monkeypatch.setattr(gpus, "visible", lambda: ["3", "5"])
    monkeypatch.setattr(run_jobs, "_run", run)
    said: list[str] = []
    bench(write_suite(tmp_path / "tiny", **{**GRID, "trials": {"points": 1}}), Options(jobs=4), said.append)
    assert said[0] == "tiny: one process per run with a GPU each (2 at a time)"
    ended = sorted(path.name.split("-")[0] for path in seen.iterdir() if "-" in path.name)
    assert len(ended) == 6
    assert set(ended) == {"3", "5"}
    assert all("failed: made up" in line for line in said[1:])


def test_what_would_initialize_cuda_is_imported_after_the_fork(tmp_path: Path) -> None:
    folder = write_suite(tmp_path / "tiny", **{**GRID, "trials": {"points": 1}})
    code = f"""
import subprocess
import sys
from pathlib import Path
from peftlab.suites import gpus, run_jobs
from peftlab.suites.scheduler import Options
gpus.visible = lambda: ["0"]
def run(recipe, folder, threads):
    print("heavy:", sorted({{"bitsandbytes", "peft", "transformers"}} & set(sys.modules)))
run_jobs._run = run
run_jobs.bench(Path({str(folder)!r}), Options(), lambda line: None)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    logs = [path.read_text() for path in (folder / ".bench" / "logs").iterdir()]
    assert logs
    assert set(logs) == {"heavy: []\n"}


def test_sizes_are_found_in_a_forked_process_on_a_machine_with_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_suite(tmp_path / "tiny", **GRID, match={"parameters": 166000})
    monkeypatch.setattr(gpus, "visible", lambda: ["0"])
    parent = os.getpid()
    real = matching.find_size

    def find_size(*arguments: object) -> object:
        assert os.getpid() != parent
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(matching, "find_size", find_size)
    assert not matching.matched_suite(folder).unmatched()


def test_a_user_error_of_a_forked_process_is_raised_in_this_one() -> None:
    def work() -> None:
        raise UserError("a\nb")

    with pytest.raises(UserError, match=r"^a\nb$"):
        workers.run_in_subprocess(work)


def test_more_processes_than_gpus_are_refused() -> None:
    with pytest.raises(UserError, match=r"asked for 2 processes .*this machine has 1.*--num_processes 1"):
        _check_gpus(2, 1)


def test_buffers_that_deepspeed_leaves_on_the_cpu_are_moved() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    model[1].register_buffer("passing", torch.zeros(2), persistent=False)
    _move_buffers(model, torch.device("meta"))
    assert {buffer.device.type for buffer in model.buffers()} == {"meta"}
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert "1.passing" not in model.state_dict()
