"""`peftlab --help`, --version, and the former names of commands."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from peftlab.cli.app import COMMANDS, app
from tests.cli.processes import peftlab, refused

ROOT = Path(__file__).parents[2]


def test_help_lists_run_first_and_cuts_no_summary_at_80_columns() -> None:
    lines = peftlab("--help", COLUMNS="80").stdout.splitlines()
    commands = lines[lines.index("Commands:") + 1 :]
    assert commands[0].split()[0] == "run"
    assert [line.split()[0] for line in commands] == list(COMMANDS)
    assert [line for line in lines if "..." in line or len(line) > 80] == ["Usage: peftlab [OPTIONS] COMMAND [ARGS]..."]


def test_every_argument_and_option_has_a_description() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    parameters = [(name, parameter) for name in COMMANDS for parameter in commands[name].params]
    assert len(parameters) > 40
    undescribed = [(name, p.name) for name, p in parameters if not p.help and not getattr(p, "hidden", False)]
    assert undescribed == []


def test_version_is_the_package_version() -> None:
    assert peftlab("--version").stdout == f"peftlab {importlib.metadata.version('peftlab')}\n"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["ledger", "recipes/lora-ner.yaml"], "`peftlab profile`"),
        (["plan", "recipes/lora-ner.yaml", "--device", "24 GiB"], "`peftlab estimate`"),
        (["bench", "benchmarks/quick", "--ledger"], "--profile"),
    ],
)
def test_a_former_name_is_one_line_with_the_new_one(words: list[str], name: str) -> None:
    assert refused(*words).endswith(f": renamed; use {name}")


def test_no_command_module_imports_a_heavy_library() -> None:
    modules = ["list_components" if name == "list" else name for name in COMMANDS]
    code = (
        "import importlib, sys\n"
        f"for name in {modules}:\n"
        "    importlib.import_module(f'peftlab.cli.{name}')\n"
        "    assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), name"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
