"""docs/extending.md works as written: its files fit the package, and its commands print what it shows."""

from __future__ import annotations

import doctest
import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "extending.md"
PARTS = ("peftlab", "tests", "recipes", "benchmarks/quick", "pyproject.toml")  # of a checkout, that the commands need
BLOCK = re.compile(r"^```(?P<language>\w+) ?(?P<path>\S*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
SLOW = ("pytest", "peftlab doctor", "peftlab table", "peftlab verify")  # 5 to 22 s of CPU; the others take at most 1 s

Checkout = Callable[[str], Path]


@dataclass(frozen=True)
class Command:
    """A command of a section and the output that the page shows; "..." stands for any text."""

    section: str
    line: str
    output: str

    def __str__(self) -> str:
        return f"{self.section}: {self.line}"


def sections() -> dict[str, str]:
    """Text of each section by its title."""
    _, *parts = re.split(r"^## (.*)\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def commands(section: str, text: str) -> list[Command]:
    """Commands of the section's console blocks."""
    found = []
    for block in BLOCK.finditer(text):
        if block["language"] == "console":
            _, *parts = re.split(r"^\$ (.*)\n", block["text"], flags=re.MULTILINE)
            found += [Command(section, line, output) for line, output in zip(parts[::2], parts[1::2], strict=True)]
    return found


def apply(text: str, folder: Path) -> list[Path]:
    """Write the section's files into the folder and make its changes; return the paths of both.

    The info string of a block names the file. A diff holds lines that occur once in the file, some with + or -.
    """
    paths = []
    for block in BLOCK.finditer(text):
        if not block["path"]:
            continue
        path = folder / block["path"]
        if block["language"] == "diff":
            lines = block["text"].splitlines(keepends=True)
            old, new = ("".join(line[1:] for line in lines if line[0] in kept) for kept in ("- ", "+ "))
            content = path.read_text(encoding="utf-8")
            assert content.count(old) == 1, f"{block['path']} contains {content.count(old)} times:\n{old}"
            path.write_text(content.replace(old, new), encoding="utf-8")
        else:
            assert not path.exists(), f"{block['path']} exists already"
            path.write_text(block["text"], encoding="utf-8")
        paths.append(path)
    return paths


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command line in a checkout as a contributor would, with the environment's programs first."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        env={
            **environment,
            "PYTEST_ADDOPTS": "-p no:warnings",
            "PATH": path,
            "PYTHONPATH": str(folder),
            "HF_HUB_OFFLINE": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )


def copy_checkout(folder: Path) -> None:
    """Copy the parts of the checkout that the commands need."""
    for part in PARTS:
        source, target = ROOT / part, folder / part
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy2(source, target)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A copy of the checkout to which a section has been applied, one per section."""

    @functools.cache
    def make(section: str) -> Path:
        folder = tmp_path_factory.mktemp("checkout")
        copy_checkout(folder)
        apply(sections()[section], folder)
        return folder

    return make


@pytest.mark.parametrize("section", sections())
def test_every_section_shows_code_and_proves_it(section: str) -> None:
    text = sections()[section]
    assert any(block["path"] for block in BLOCK.finditer(text))
    assert commands(section, text)


@pytest.mark.parametrize("section", sections())
def test_the_code_passes_the_linter_and_the_formatter(section: str, tmp_path: Path) -> None:
    shutil.copy2(ROOT / "pyproject.toml", tmp_path)
    for block in BLOCK.finditer(sections()[section]):
        if block["language"] == "python":
            path = tmp_path / block["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block["text"], encoding="utf-8")
    done = run("ruff check --no-cache . && ruff format --no-cache --check .", tmp_path)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_code_passes_the_type_checker_and_the_import_layers(tmp_path: Path) -> None:
    copy_checkout(tmp_path)
    for text in sections().values():
        apply(text, tmp_path)
    done = run("mypy --no-incremental && lint-imports --no-cache", tmp_path)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, id=str(command), marks=[pytest.mark.slow] if command.line.startswith(SLOW) else [])
        for section, text in sections().items()
        for command in commands(section, text)
    ],
)
def test_a_command_prints_what_the_page_shows(command: Command, checkout: Checkout) -> None:
    done = run(command.line, checkout(command.section))
    assert done.returncode == 0, done.stdout
    matches = doctest.OutputChecker().check_output(command.output, done.stdout, doctest.ELLIPSIS)
    assert matches, f"{command.line} printed\n{done.stdout}\nand the page shows\n{command.output}"
