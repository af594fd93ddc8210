"""A finished run of the command line."""

import subprocess
from pathlib import Path

import pytest

from peftlab.data.examples import Splits
from peftlab.models.model import ModelFiles
from tests.cli.processes import peftlab


@pytest.fixture(scope="session")
def first_run(
    tmp_path_factory: pytest.TempPathFactory,
    minilm: ModelFiles,  # downloads what the run needs
    addresses: Splits,
) -> tuple[subprocess.CompletedProcess[str], Path]:
    from tests.conftest import RECIPE

    folder = tmp_path_factory.mktemp("cli")
    (folder / "mine.yaml").write_text(RECIPE)
    # No proxy answers there: whatever asked the network would fail.
    nowhere = {"HF_HUB_OFFLINE": "0", "HTTPS_PROXY": "http://127.0.0.1:9", "PIP_NO_INDEX": "1"}
    return peftlab("run", "mine.yaml", "--set", "quantization=nf4", folder=folder, **nowhere), folder
