"""Tiny suites that have been run, shared by the tests that read their results."""

from pathlib import Path

import pytest

from peftlab.runs.run import run
from peftlab.suites.adopt import adopt
from peftlab.suites.run_jobs import bench
from peftlab.suites.scheduler import Options
from peftlab.suites.suite_file import load_suite
from tests.suites.tiny import GRID, HEAD, write_suite


@pytest.fixture(scope="session")
def finished_suite(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of GRID after `bench`, and the messages of `bench`."""
    folder = write_suite(tmp_path_factory.mktemp("suites") / "tiny", **GRID)
    messages: list[str] = []
    bench(folder, Options(jobs=2), messages.append)
    return folder, messages


@pytest.fixture(scope="session")
def stored_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a suite with one finished run; the run itself is in ../runs/one."""
    folder = write_suite(
        tmp_path_factory.mktemp("suites") / "tiny",
        methods={"head": HEAD},
        reference="head",
        training={"steps": 3},
        data={"test_examples": 30},
    )
    suite = load_suite(folder)
    run(suite.example(next(suite.rows())), folder.with_name("runs") / "one")
    assert adopt(folder, folder.with_name("runs"), lambda line: None) == 1
    return folder
