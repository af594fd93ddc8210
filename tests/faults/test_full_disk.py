"""A full disk: a failed checkpoint does not end a run, a failed result can be resumed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import KILLED, Lab, counted, finished, one_line, steps
from tests.sampling import slow_after

EVERY = ("--checkpoint-every", "1")


def spread(lowest: int, highest: int, number: int) -> list[int]:
    return [lowest + i * (highest - lowest) // (number - 1) for i in range(number)]


@pytest.mark.parametrize("saves", [(1,), (3, 4), (1, 2, 3, 4, 5, 6, 7, 8)], ids=str)
def test_a_failed_checkpoint_does_not_end_the_run(saves: tuple[int, ...], lab: Lab, output: Path) -> None:
    done = lab.server.run(*lab.words(output), *EVERY, faults=[["disk_full_at_save", *saves]])
    assert done.code == 0, done.err
    for step in saves:
        assert f"checkpoint step {step} could not be saved: No space left on device" in done.out
    assert finished(output).digest == lab.uninterrupted().digest


def test_killed_while_the_disk_is_full_it_resumes_from_the_last_good_checkpoint(lab: Lab, output: Path) -> None:
    words = [*lab.words(output), *EVERY]
    faults = [["disk_full_at_save", 3, 4], ["kill_at_step", 5]]
    assert lab.server.run(*words, faults=faults).code == KILLED
    assert [path.name for path in steps(output)] == ["step-00000001", "step-00000002"]
    assert list(output.glob("tiny/*.checkpoints/.*")) == []
    done = lab.server.run(*words, "--resume")
    assert "from step 2" in done.out
    assert finished(output).digest == lab.uninterrupted().digest


@pytest.mark.parametrize("size", slow_after(2, spread(0, 4000, counted(5, 60))))
def test_without_space_for_the_result_it_resumes_when_there_is(size: int, lab: Lab, output: Path) -> None:
    words = [*lab.words(output), *EVERY, "--resume"]
    assert lab.server.run(*words, faults=[["kill_at_step", 4]]).code == KILLED
    done = lab.server.run(*words, faults=[["largest_file_of_run", size]])
    assert done.code == 2, done.err
    assert "cannot be written: " in one_line(done.err)
    assert [path.name for path in steps(output)] == ["step-00000002", "step-00000003"]
    assert lab.server.run(*words).code == 0
    assert finished(output).digest == lab.uninterrupted().digest


@pytest.fixture
def small_disk(lab: Lab) -> Iterator[Path]:
    """A tmpfs of 700 kB."""
    path = lab.folder / "small-disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", path], capture_output=True)
    if mounted.returncode:
        path.rmdir()
        pytest.skip("mounting a file system is not permitted")
    yield path
    subprocess.run(["umount", path], check=True)
    path.rmdir()


@pytest.mark.parametrize("left", spread(4_000, 40_000, counted(3, 56)))
def test_on_a_full_file_system_it_ends_with_a_line_and_resumes(left: int, lab: Lab, small_disk: Path) -> None:
    words = [*lab.words(small_disk), *EVERY, "--resume"]
    assert lab.server.run(*words, faults=[["kill_at_step", 4]]).code == KILLED
    room = os.statvfs(small_disk)
    (small_disk / "ballast").write_bytes(bytes(max(0, room.f_bavail * room.f_bsize - left)))
    full = lab.server.run(*words)
    assert full.code == 2, full.err[-600:]
    assert "Traceback" not in full.err
    assert "No space left on device" in full.err
    (small_disk / "ballast").unlink()
    assert lab.server.run(*words).code == 0
    assert finished(small_disk).digest == lab.uninterrupted().digest


def test_a_merge_onto_a_full_disk_is_one_line_and_leaves_nothing(lab: Lab, output: Path, small_disk: Path) -> None:
    assert lab.server.run(*lab.words(output)).code == 0
    (run,) = output.glob("tiny/[!.]*")
    merged = small_disk / "merged"
    (small_disk / "ballast").write_bytes(bytes(600_000))
    done = lab.server.run("merge", run, "--output", merged)
    assert done.code == 2
    assert one_line(done.err).startswith(f"--output {merged}: cannot be written: ")
    assert [path.name for path in small_disk.iterdir() if path.name != "lost+found"] == ["ballast"]
