"""The pages name what exists: linked files and headings, paths, make targets, commands and options."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from peftlab.cli.app import app
from peftlab.recipe import load_recipe
from tests.docs.test_extending import BLOCK as NAMED_BLOCK

ROOT = Path(__file__).parent.parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
BLOCK = re.compile(r"^```.*?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`((?:[^`\n]|\n(?!\n))+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)|<(?:a|img)[^>]* (?:href|src)=\"([^\"]+)\"")
PATH = re.compile(r"^(?:peftlab|tests|docs|recipes|benchmarks|\.ci)/[\w./-]+$")
COMMAND = re.compile(r"\bpeftlab ([a-z][a-z-]*)([^|;#&]*)")
OPTION = re.compile(r"(?<!\S)--[a-z][a-z_-]*")
MAKE = re.compile(r"(?:^|[`$;] ?)make((?: [a-z][a-z-]*(?![\w=]))?)((?: [a-z]+=(?:\"[^\"]*\"|\S+))*)", re.MULTILINE)

ACCELERATE = {"--config_file", "--cpu", "--num_processes"}  # options of `accelerate launch` that pages mention

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def slug(heading: str) -> str:
    """Anchor that GitHub gives a heading.

    >>> slug("A run, step by step"), slug("`peftlab run` --resume")
    ('a-run-step-by-step', 'peftlab-run---resume')
    """
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def inline_code(page: Path) -> list[str]:
    prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(text.split()) for text in CODE.findall(prose)]


def anchors(page: Path) -> set[str]:
    prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", prose, flags=re.MULTILINE)}


def code(page: Path) -> Iterator[str]:
    """Lines of the page's code blocks, and its inline code."""
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        yield from block[1].splitlines()
    yield from inline_code(page)


def options() -> dict[str, set[str]]:
    """Options of each command, by its name. The former names of commands are hidden, and no page may use them."""
    group = typer.main.get_command(app)
    commands = group.commands.items()  # type: ignore[attr-defined]  # a typer.Typer with several commands is a group
    return {
        name: {option for parameter in command.params for option in parameter.opts} | {"--help"}
        for name, command in commands
        if not command.hidden
    }


def added_by(page: Path) -> set[str]:
    """Files that an example on the page adds, and the command of the same name as such a file."""
    text = page.read_text(encoding="utf-8")
    files = {block["path"] for block in NAMED_BLOCK.finditer(text) if block["path"] and block["language"] != "diff"}
    return files | {Path(file).stem for file in files if file.startswith("peftlab/cli/")}


@every_page
def test_links_lead_to_files_and_headings(page: Path) -> None:
    broken = []
    for groups in LINK.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
        link = "".join(groups)
        if re.match(r"https?:|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@every_page
def test_paths_exist(page: Path) -> None:
    paths = {text for text in inline_code(page) if PATH.match(text) and "NAME" not in text}
    assert [path for path in sorted(paths - added_by(page)) if not (ROOT / path).exists()] == []


@every_page
def test_make_targets_and_variables_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, flags=re.MULTILINE))
    variables = set(re.findall(r"\$\((?:if |or )?([a-z]+)\b", makefile))
    calls = [call for line in code(page) for call in MAKE.findall(line)]
    assert {target.strip() for target, _ in calls} - {""} <= targets
    assert {
        name for _, values in calls for name in re.findall(r"([a-z]+)=", re.sub(r'"[^"]*"', "", values))
    } <= variables


@every_page
def test_commands_and_options_exist(page: Path) -> None:
    known, wrong = options(), []
    for line in code(page):
        for command, rest in COMMAND.findall(line):
            if command not in known:
                wrong += [command] if command not in added_by(page) else []
                continue
            wrong += [f"{command} {option}" for option in OPTION.findall(rest) if option not in known[command]]
    assert wrong == []


@every_page
def test_options_in_prose_exist(page: Path) -> None:
    known = set().union(*options().values(), {"--version"}, ACCELERATE)
    mentioned = {option for text in inline_code(page) if text.startswith("--") for option in OPTION.findall(text)}
    assert mentioned <= known


def test_every_page_of_docs_is_linked_from_the_readme() -> None:
    links = {"".join(groups).partition("#")[0] for groups in LINK.findall(PAGES[0].read_text(encoding="utf-8"))}
    assert {f"docs/{page.name}" for page in PAGES if page.parent.name == "docs"} <= links


def test_the_readme_has_at_most_700_words() -> None:
    assert len(PAGES[0].read_text(encoding="utf-8").split()) <= 700


def test_the_recipe_of_the_readme_is_valid(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", PAGES[0].read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    path = tmp_path / "readme.yaml"
    path.write_text(block, encoding="utf-8")
    assert load_recipe(path, []).name == "readme"


def test_the_python_of_the_readme_fits_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the training runs; the call that trains fits the signature."""
    (block,) = re.findall(
        r"^```python\n(.*?)^```$", PAGES[0].read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    monkeypatch.chdir(ROOT)
    before, call, _ = re.split(r"^result = run(\(.*\))$", block, flags=re.MULTILINE)
    names: dict[str, Any] = {}
    exec(before, names)
    exec(f"inspect.signature(run).bind{call}", names | {"inspect": inspect})
