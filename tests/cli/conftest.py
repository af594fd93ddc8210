"""A finished run of the command line."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

from peftlab.data.examples import Splits
from peftlab.models.model import ModelFiles
from tests.cli.processes import peftlab


@pytest.fixture(scope="session")
def first_run(
    tmp_path_factory: pytest.TempPathFactory,
    minilm: ModelFiles,  # downloads what the run needs
    addresses: Splits,
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """One run for all test processes. A test that writes into its folder copies it first."""
    from tests.conftest import RECIPE

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, stored = shared / "cli", shared / "cli.json"
    with FileLock(shared / "cli.lock"):
        if not stored.exists():
            folder.mkdir()
            (folder / "mine.yaml").write_text(RECIPE)
            # No proxy answers there: whatever asked the network would fail.
            nowhere = {"HF_HUB_OFFLINE": "0", "HTTPS_PROXY": "http://127.0.0.1:9", "PIP_NO_INDEX": "1"}
            done = peftlab("run", "mine.yaml", "--set", "quantization=nf4", folder=folder, **nowhere)
            stored.write_text(json.dumps([done.args, done.returncode, done.stdout, done.stderr]))
    return subprocess.CompletedProcess(*json.loads(stored.read_text())), folder
