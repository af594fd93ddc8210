"""A tiny suite that has been run, shared by the tests that read its results."""

from pathlib import Path

import pytest

from peftlab.suites.run_jobs import bench
from peftlab.suites.scheduler import Options
from tests.suites.tiny import GRID, write_suite


@pytest.fixture(scope="session")
def finished_suite(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of GRID after `bench`, and the messages of `bench`."""
    folder = write_suite(tmp_path_factory.mktemp("suites") / "tiny", **GRID)
    messages: list[str] = []
    bench(folder, Options(jobs=2), messages.append)
    return folder, messages
