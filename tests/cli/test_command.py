"""Every command: imports nothing heavy, ends without a traceback."""

import signal
import subprocess
import sys

import pytest

from tests.cli.processes import ROOT


@pytest.mark.parametrize(
    "words", [["--help"], ["list"], ["schema"], ["validate", "recipes/lora-ner.yaml"]], ids=" ".join
)
def test_a_command_that_does_not_train_imports_no_heavy_library(words: list[str]) -> None:
    code = f"""
import sys
sys.argv = ["peftlab", *{words!r}]
from peftlab.cli.app import app
try:
    app()
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = {{"torch", "transformers", "peft", "datasets", "evaluate", "numpy", "scipy", "sklearn"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_an_interrupt_during_imports_prints_no_traceback() -> None:
    slow = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, *rest):
        if name == "peftlab.cli.app":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
import peftlab.__main__
"""
    done = subprocess.run([sys.executable, "-c", slow], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_a_closed_pipe_is_no_error() -> None:
    """`peftlab schema | head`"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = subprocess.Popen([sys.executable, "-m", "peftlab", "schema"], cwd=ROOT, **pipes)
    assert command.stdout is not None
    assert command.stderr is not None
    command.stdout.close()
    assert command.stderr.read() == b""
    assert command.wait() == 1
