"""The Makefile: help is the default target, and a mistake is one line and exit code 2."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def make(*words: str) -> subprocess.CompletedProcess[str]:
    """Run make with the interpreter of the tests instead of .venv."""
    variables = (f"BIN={Path(sys.executable).parent}", "READY=", "VENV=/nonexistent")
    # Without what the make that may have started the tests passes on to one below it.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS")
    }
    return subprocess.run(
        ["make", *words, *variables], cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment
    )


def test_make_without_a_target_prints_help_and_installs_nothing() -> None:
    done = make()
    assert done.returncode == 0, done.stderr
    assert done.stdout == make("help").stdout
    assert "make recipe name=X" in done.stdout


def test_help_lists_every_target() -> None:
    (targets,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    shown = make("help").stdout
    assert [name for name in targets.split() if name != "help" and f"make {name} " not in shown] == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "make recipe: name a recipe, e.g. make recipe name=lora-ner; there are: "),
        (["name=lora-nre"], "recipes/lora-nre.yaml: no such recipe (did you mean 'lora-ner'?)"),
        (["name=lora-ner", "device=tpu"], "make recipe: device=tpu: expected cpu or cuda"),
        (["name=lora-ner", "processes=two"], "make recipe: processes=two: expected a number, 1 or more"),
        (["name=lora-ner", "set=rank=4"], "--set rank: "),
        (["name=lora-ner", "set=rank=4", "processes=2", "device=cpu"], "--set rank: "),
    ],
    ids=lambda value: " ".join(value) or "no name" if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(words: list[str], says: str) -> None:
    done = make("recipe", *words)
    line, end = done.stderr.splitlines()
    assert line.startswith(says)
    assert end.startswith("make: *** ")
    assert done.returncode == 2


def test_overrides_may_contain_spaces_in_quotes() -> None:
    words = ["-n", "recipe", "name=lora-ner", "set=seeds=1 'method={kind: lora, rank: 4}'"]
    assert "set -- seeds=1 'method={kind: lora, rank: 4}';" in make(*words).stdout
